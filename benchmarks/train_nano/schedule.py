"""What a step of training does, as a function of how many tokens were read before it.

Nothing here depends on the past of a process, so that training can stop and go on anywhere. The
learning rate is constant until half of the tokens are read and the context short until later, so
that the total may still be changed while neither has moved.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# From which part of the training on which context is used: most is learnt from short ones, which
# are cheap, and positions only need to have been seen.
CONTEXTS = ((0.0, 256), (0.60, 512), (0.88, 1024), (0.96, 2048))


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How many tokens to read, and how.

    Attributes:
        tokens: of the whole training.
        batch: tokens per step, a multiple of the longest context.
        warmup: tokens during which the learning rate rises.
        stable: part of the training after which it falls, to zero.
        seed: of the order in which text is read.
    """

    tokens: int
    batch: int = 4096
    warmup: int = 100_000
    stable: float = 0.5
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.tokens // self.batch

    def rate(self, step: int) -> float:
        """The fraction of the peak learning rate at a step."""
        seen = step * self.batch
        falling = (self.tokens - seen) / ((1 - self.stable) * self.tokens)
        return max(0.0, min((seen + self.batch) / self.warmup, 1.0, falling))

    def context(self, step: int) -> int:
        """Tokens of a row of the batch at a step."""
        part = step / self.steps
        return next(length for start, length in reversed(CONTEXTS) if part >= start)

    def rows(self, step: int, ids: Tensor) -> Tensor:
        """Token ids [rows, context + 1] of a step: every window once before any twice."""
        length = self.context(step)
        windows = (len(ids) - 1) // length
        first = step * self.batch // length
        chosen = []
        for at in range(first, first + self.batch // length):
            epoch, index = divmod(at, windows)
            generator = torch.Generator().manual_seed(self.seed * 1000 + epoch)
            begin = int(torch.randperm(windows, generator=generator)[index]) * length
            chosen.append(ids[begin : begin + length + 1])
        return torch.stack(chosen).long()
