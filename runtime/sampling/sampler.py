"""From logits to tokens, one for each row of a batch.

    log probabilities are taken (if asked for)
      → minimum length → logit bias → penalties          every row
      → temperature → min-p → top-k → top-p → + noise    rows that are not greedy
      → argmax, the lowest token of equals               every row

The order is vLLM's. Rows that are not greedy are worked through in blocks that fit a CPU cache or
bound the memory taken on a GPU; the size of a block changes no bit of the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.runtime.outputs import TokenLogprobs
from twinflow.runtime.sampling.filters import keep_threshold
from twinflow.runtime.sampling.logprobs import RawLogprobs
from twinflow.runtime.sampling.modifiers import LOGIT_LIMIT, apply_modifiers
from twinflow.runtime.sampling.noise import NoiseSource
from twinflow.runtime.sampling.ordering import first_argmax
from twinflow.runtime.sampling.state import SamplingState

# Logits per block. Scratch memory is 16 bytes per logit: 1 MiB on a CPU, 256 MiB on a GPU.
_BLOCK_LOGITS_CPU = 2**16
_BLOCK_LOGITS_GPU = 2**24


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token chosen for one row.

    Attributes:
        token_id: the token.
        logprobs: of the unmodified distribution, if the sequence asked for them.
    """

    token_id: int
    logprobs: TokenLogprobs | None


@dataclass(frozen=True, slots=True)
class NumericalFault:
    """A row whose logits are not numbers: its sequence has to fail, its neighbours need not.

    Attributes:
        position: absolute position of the token that could not be chosen.
    """

    position: int


class Sampler:
    """Chooses tokens; has no state beyond scratch memory.

    Args:
        vocab_size: columns of the logits.
        device: where the logits are.
    """

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        limit = _BLOCK_LOGITS_CPU if self._device.type == "cpu" else _BLOCK_LOGITS_GPU
        self._block_rows = max(1, limit // vocab_size)
        self._noise = NoiseSource(vocab_size, self._device, self._block_rows)

    @torch.inference_mode()
    def sample(
        self, logits: Tensor, states: Sequence[SamplingState]
    ) -> list[SampledToken | NumericalFault]:
        """Choose the next token of every row.

        Args:
            logits: fp32 [R, vocab_size], contiguous; overwritten.
            states: the sequence of each row, at the position to choose.

        Returns:
            One entry per row. Rows with a NaN, an infinity or a logit beyond 1e30 are faults.
        """
        self._check(logits, states)
        if not states:
            return []
        healthy = (logits.amax(dim=-1) <= LOGIT_LIMIT) & (logits.amin(dim=-1) >= -LOGIT_LIMIT)
        asked = {
            row: state.params.logprobs
            for row, state in enumerate(states)
            if state.params.logprobs is not None
        }
        raw = RawLogprobs(logits, asked) if asked else None
        apply_modifiers(logits, states)
        self._add_noise(logits, states)
        tokens = first_argmax(logits)
        logprobs = raw.of(tokens) if raw is not None else {}
        rows = enumerate(zip(tokens.tolist(), healthy.tolist(), states, strict=True))
        return [
            SampledToken(token, logprobs.get(row)) if ok else NumericalFault(state.position)
            for row, (token, ok, state) in rows
        ]

    def _check(self, logits: Tensor, states: Sequence[SamplingState]) -> None:
        if logits.dtype != torch.float32 or not logits.is_contiguous():
            raise ValueError(f"logits must be contiguous fp32, not {logits.dtype}")
        if logits.shape != (len(states), self._vocab_size):
            raise ValueError(
                f"logits have shape {tuple(logits.shape)}, "
                f"expected ({len(states)}, {self._vocab_size})"
            )

    def _add_noise(self, logits: Tensor, states: Sequence[SamplingState]) -> None:
        """Turn the logits of rows that are not greedy into the scores of their race."""
        rows = [row for row, state in enumerate(states) if not state.params.greedy]
        for start in range(0, len(rows), self._block_rows):
            block = rows[start : start + self._block_rows]
            index = torch.tensor(block, device=self._device)
            scores = self._scores(logits.index_select(0, index), [states[row] for row in block])
            logits.index_copy_(0, index, scores)

    def _scores(self, logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
        params = [state.params for state in states]
        temperature = torch.tensor([[p.temperature] for p in params], dtype=torch.float32)
        # A tensor, because dividing by a number is a rounded multiplication on GPUs.
        scaled = logits.div_(temperature.to(self._device))
        threshold = keep_threshold(scaled, params)
        if threshold is not None:
            scaled.masked_fill_(scaled < threshold, -torch.inf)
        return scaled.add_(self._noise.gumbel([state.noise_key for state in states]))
