"""Tokens of sequences that were sent somewhere and have brought no token yet."""


class Backlog:
    """Counts sequences in and out."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self._total = 0

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def request_ids(self) -> frozenset[str]:
        """The sequences."""
        return frozenset(self._tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return self._total

    def add(self, request_id: str, num_tokens: int) -> None:
        """A sequence was sent.

        Raises:
            ValueError: it is here already.
        """
        if request_id in self._tokens:
            raise ValueError(f"sequence {request_id} is counted already")
        self._tokens[request_id] = num_tokens
        self._total += num_tokens

    def remove(self, request_id: str) -> None:
        """The sequence has its first token, or is over; removing it twice is fine."""
        self._total -= self._tokens.pop(request_id, 0)

    def check_integrity(self) -> None:
        """Recount; raises AssertionError if the total is off."""
        if sum(self._tokens.values()) != self._total:
            raise AssertionError("the tokens of the sequences and their total differ")
