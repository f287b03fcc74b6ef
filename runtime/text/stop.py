"""Stop strings in text that arrives in chunks.

The stop string that is complete first ends the text: generation would have ended there, had the
text arrived character by character. Of several that are complete at the same character the
longest counts. So the result does not depend on how the text is cut into chunks.

    stop = ["bc", "abcd"], text = "xabcd"   →   "bc" is complete first, the text is "xa"

Counting tokens and ending sequences is the caller's.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopResult:
    """What a chunk led to.

    Attributes:
        text: what can be shown now.
        matched: the stop string that ended the text.
    """

    text: str
    matched: str | None = None


class StopMatcher:
    """Finds stop strings; work grows with characters times stop strings and with nothing else.

    Args:
        stop: non-empty strings.
        include_stop: show the stop string that ended the text.
    """

    def __init__(self, stop: Sequence[str], include_stop: bool = False) -> None:
        # Longest first: the first to match is the longest to match.
        self._needles = [_Needle(text) for text in sorted(set(stop), key=len, reverse=True)]
        self._include_stop = include_stop
        self._held = ""
        self._done = False

    def push(self, text: str, may_stop: bool = True) -> StopResult:
        """Add a chunk.

        Args:
            text: the chunk. Nothing more may come after a match or `flush`.
            may_stop: whether a stop string may end in this chunk.
        """
        if self._done:
            raise ValueError("text was pushed after the end")
        if not self._needles:
            return StopResult(text)
        pending = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            found = [needle for needle in self._needles if needle.advance(character)]
            if found and may_stop:
                return self._match(found[0].text, pending[:end])
        hold = max(needle.matched for needle in self._needles)
        self._held = pending[len(pending) - hold :]
        return StopResult(pending[: len(pending) - hold])

    def flush(self) -> str:
        """The text that was held back, when the output ends without a stop string."""
        held, self._held = self._held, ""
        self._done = True
        return held

    def _match(self, stop: str, text: str) -> StopResult:
        self._done = True
        self._held = ""
        return StopResult(text if self._include_stop else text[: -len(stop)], stop)


class _Needle:
    """One string and how much of its beginning the text ends with (Knuth, Morris, Pratt 1977)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._borders = _borders(text)
        self.matched = 0

    def advance(self, character: str) -> bool:
        """Read a character; whether the string ends with it."""
        matched = self.matched
        while matched and self.text[matched] != character:
            matched = self._borders[matched - 1]
        if self.text[matched] == character:
            matched += 1
        complete = matched == len(self.text)
        self.matched = self._borders[matched - 1] if complete else matched
        return complete


def _borders(text: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that also ends it."""
    borders = [0]
    for character in text[1:]:
        length = borders[-1]
        while length and text[length] != character:
            length = borders[length - 1]
        borders.append(length + 1 if text[length] == character else length)
    return borders
