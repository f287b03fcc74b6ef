"""The text of tokens that arrive one by one.

Characters whose bytes are split over tokens appear once they are complete. What was returned is
never taken back: all pieces together are `Tokenizer.decode` of all tokens. Stop strings are not
looked for here.
"""

import codecs
from collections.abc import Iterable, Sequence

from twinflow.runtime.text.tokenizer import Tokenizer

# A character has at most four bytes, so what a prompt leaves open lies in its last three.
_OPEN_BYTES = 3


class IncrementalDetokenizer:
    """Text of one growing sequence; constant work per token.

    Args:
        tokenizer: the model's.
        prompt_token_ids: what comes before, or its end. Decides whether the output starts the
            text, and completes a character that the prompt left open. Its text is not returned.
        skip_special_tokens: leave special tokens out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        context = self._context(prompt_token_ids)
        self._decoder.decode(context)
        self._strip = tokenizer.strips_leading_space and not context

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        data = b"".join(
            self._tokenizer.token_bytes(token) for token in token_ids if token not in self._skipped
        )
        return self._stripped(self._decoder.decode(data))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        """Drop one space at the very start of a text, if the tokenizer puts one there."""
        if not self._strip or not text:
            return text
        self._strip = False
        return text.removeprefix(" ")

    def _context(self, prompt_token_ids: Sequence[int]) -> bytes:
        """The last bytes of the prompt, read from its end."""
        context = b""
        for token in reversed(prompt_token_ids):
            if token not in self._skipped:
                context = self._tokenizer.token_bytes(token) + context
            if len(context) >= _OPEN_BYTES:
                break
        return context
