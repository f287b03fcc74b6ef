"""Whether KV of a drafter comes with a prompt from another worker, or is computed where it arrives.

Either way the drafter crosses the prompt once, and the sequence itself has to wait for that. What
differs is who else waits, and that bytes travel:

    computed on arrival    pass * other sequences that decode here
    handed over            pass * other prompts that wait over there + bytes * time of a byte + rest

in seconds that requests wait. Prompts that this worker still waits for are taken to be those that
wait over there. `rest` is what hand-overs took beyond pass and bytes: words between workers, and
the wait for steps over there. Times are measured; what was not measured yet is rebuilt, which
measures it. Decides about speed alone.
"""

from dataclasses import dataclass
from typing import Literal

_NEWEST = 0.25


@dataclass(frozen=True, slots=True)
class Arrival:
    """A prompt whose KV of the target is here.

    Attributes:
        tokens: of the prompt.
        num_bytes: of the drafter's KV of it.
        decoding: other sequences that decode here.
        awaited: other prompts that come from other workers.
    """

    tokens: int
    num_bytes: int
    decoding: int
    awaited: int


class ArrivalChoice:
    """Decides, and learns from what was decided.

    Args:
        wanted: what the operator wants.
    """

    def __init__(self, wanted: Literal["auto", "rebuild", "transfer"]) -> None:
        self._wanted = wanted
        self._byte_s: float | None = None
        self._rest_s = 0.0

    def hand_over(
        self, arrival: Arrival, *, token_s: float | None, link: tuple[float, float]
    ) -> bool:
        """Whether the KV is to be handed over.

        Args:
            arrival: the prompt.
            token_s: seconds of the drafter for a token of a prompt; None if not known.
            link: seconds and bytes of hand-offs so far, for as long as none was of a drafter's KV.
        """
        if self._wanted != "auto":
            return self._wanted == "transfer"
        byte_s = self._byte_s or (link[0] / link[1] if link[1] else None)
        if token_s is None or byte_s is None:
            return False
        one_pass = token_s * arrival.tokens
        rebuilt = one_pass * arrival.decoding
        handed_over = one_pass * arrival.awaited + arrival.num_bytes * byte_s + self._rest_s
        return handed_over < rebuilt

    def note(
        self, arrival: Arrival, *, token_s: float | None, elapsed_s: float, link_s: float
    ) -> None:
        """KV was handed over.

        Args:
            arrival: the prompt.
            token_s: see `hand_over`.
            elapsed_s: from the decision to the last digest.
            link_s: from the first announcement to the last digest.
        """
        byte_s = link_s / arrival.num_bytes
        rest_s = max(0.0, elapsed_s - link_s - (token_s or 0.0) * arrival.tokens)
        if self._byte_s is None:
            self._byte_s, self._rest_s = byte_s, rest_s
            return
        self._byte_s += _NEWEST * (byte_s - self._byte_s)
        self._rest_s += _NEWEST * (rest_s - self._rest_s)
