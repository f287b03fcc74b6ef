"""How long the outputs of an engine's latest requests were.

Fed by whoever ends requests, read by admission policies. It predicts nothing.
"""

from collections import deque
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_WINDOW = 200


class OutputHistory:
    """The latest output lengths.

    Args:
        window: how many are remembered.

    Attributes:
        window: likewise.
    """

    def __init__(self, window: int = _WINDOW) -> None:
        if window < 1:
            raise ValueError(f"a history of {window} lengths remembers nothing")
        self.window = window
        self._lengths: deque[int] = deque(maxlen=window)

    def __len__(self) -> int:
        return len(self._lengths)

    def record(self, length: int) -> None:
        """A request has ended after so many tokens, for whatever reason."""
        self._lengths.append(length)
        self.__dict__.pop("ascending", None)

    @cached_property
    def ascending(self) -> NDArray[np.int64]:
        """The lengths, sorted; do not change."""
        return np.sort(np.array(self._lengths, dtype=np.int64))
