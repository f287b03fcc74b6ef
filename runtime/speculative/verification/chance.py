"""Random decisions from a counter: a pure function of seed, position and how many came before.

So the decisions about a proposal do not depend on who else is verified in the same step. They are
independent of the noise that chooses tokens at the same position.
"""

import numpy as np

from twinflow.runtime.sampling.noise import GOLDEN, mix64, stream_key
from twinflow.runtime.speculative.draft import FloatArray

# Sets the stream apart from that of `runtime.sampling.noise` with the same seed.
_DECISIONS = 0xA5A3564E27F8865D


class CounterChance:
    """See the module.

    Args:
        seed: of the sequence, in [0, 2**64).
        position: of the first token that is decided on.
    """

    def __init__(self, seed: int, position: int) -> None:
        self._state = stream_key(seed ^ _DECISIONS, position)

    def happens(self, weight: float, of: float) -> bool:
        """See `Chance.happens`."""
        return self._uniform() * of < weight

    def draw(self, distribution: FloatArray) -> int:
        """See `Chance.draw`; by the inverse of the cumulative distribution."""
        mass = np.cumsum(distribution)
        index = np.searchsorted(mass, self._uniform() * mass[-1], side="right")
        # Rounding may push the product up to the whole mass, behind the last token that has any.
        return int(min(index, np.flatnonzero(distribution)[-1]))

    def _uniform(self) -> float:
        """The next value in [0, 1)."""
        self._state += GOLDEN
        return float((mix64(self._state) >> 11) * 2.0**-53)
