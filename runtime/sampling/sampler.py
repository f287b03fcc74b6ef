"""From logits to tokens, one for each row of a batch.

    log probabilities are taken (if asked for)
      → minimum length → logit bias → penalties          every row
      → temperature → min-p → top-k → top-p → + noise    rows that are not greedy
      → argmax, the lowest token of equals               every row

The order is vLLM's. Rows that are not greedy are worked through in blocks that fit a CPU cache or
bound the memory taken on a GPU; the size of a block changes no bit of the result.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinflow.runtime.outputs import NumericalFault, SampledToken
from twinflow.runtime.sampling.filters import filters, keep_threshold
from twinflow.runtime.sampling.logprobs import RawLogprobs
from twinflow.runtime.sampling.modifiers import LOGIT_LIMIT, apply_modifiers
from twinflow.runtime.sampling.noise import NoiseSource
from twinflow.runtime.sampling.ordering import first_argmax
from twinflow.runtime.sampling.state import SamplingState

# Logits per block. Scratch memory is 16 bytes per logit: 1 MiB on a CPU, 256 MiB on a GPU.
_BLOCK_LOGITS_CPU = 2**16
_BLOCK_LOGITS_GPU = 2**24


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
        faults = _clear_faults(logits)
        asked = {
            row: state.params.logprobs
            for row, state in enumerate(states)
            if state.params.logprobs is not None
        }
        raw = RawLogprobs(logits, asked) if asked else None
        self._run_race(logits, states)
        tokens = first_argmax(logits)
        logprobs = raw.of(tokens) if raw is not None else {}
        return [
            NumericalFault(states[row].position)
            if row in faults
            else SampledToken(token, logprobs.get(row))
            for row, token in enumerate(tokens.tolist())
        ]

    @torch.inference_mode()
    def score(self, logits: Tensor, states: Sequence[SamplingState]) -> frozenset[int]:
        """Turn logits into the scores whose argmax `sample` chooses.

        Args:
            logits: see `sample`; overwritten with the scores, -inf where a token is filtered out.
            states: likewise.

        Returns:
            Rows that are faults, whose scores say nothing.
        """
        self._check(logits, states)
        faults = _clear_faults(logits)
        self._run_race(logits, states)
        return faults

    def _run_race(self, logits: Tensor, states: Sequence[SamplingState]) -> None:
        apply_modifiers(logits, states)
        self._add_noise(logits, states)

    def _check(self, logits: Tensor, states: Sequence[SamplingState]) -> None:
        if logits.dtype != torch.float32 or not logits.is_contiguous():
            raise ValueError(f"logits must be contiguous float32, not {logits.dtype}")
        if logits.shape != (len(states), self._vocab_size):
            raise ValueError(
                f"logits have shape {tuple(logits.shape)}, "
                f"expected ({len(states)}, {self._vocab_size})"
            )

    def _add_noise(self, logits: Tensor, states: Sequence[SamplingState]) -> None:
        """Turn the logits of rows that are not greedy into the scores of their race."""
        rows = [row for row, state in enumerate(states) if not state.params.greedy]
        filtered = [row for row in rows if filters(states[row].params, self._vocab_size)]
        whole = sorted(set(rows) - set(filtered))
        for race, members in ((self._race, whole), (self._filtered_race, filtered)):
            for start in range(0, len(members), self._block_rows):
                block = members[start : start + self._block_rows]
                index = torch.tensor(block, device=self._device)
                scores = race(logits.index_select(0, index), [states[row] for row in block])
                logits.index_copy_(0, index, scores)

    def _race(self, logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
        """Scores [R, V] of rows that keep every token."""
        noise = self._noise.gumbel([state.noise_key for state in states])
        return self._scale(logits, states).add_(noise)

    def _filtered_race(self, logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
        """Scores [R, V] of rows with filters; most tokens drop out and need no noise."""
        scaled = self._scale(logits, states)
        threshold = keep_threshold(scaled, [state.params for state in states])
        rows, columns = (scaled >= threshold).nonzero(as_tuple=True)
        noise = self._noise.gumbel_at([state.noise_key for state in states], rows, columns)
        kept = scaled[rows, columns].add_(noise)
        scaled.fill_(-torch.inf)
        scaled[rows, columns] = kept
        return scaled

    def _scale(self, logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
        temperature = [[state.params.temperature] for state in states]
        # A tensor, because GPUs divide by a number through its rounded reciprocal.
        return logits.div_(torch.tensor(temperature, dtype=torch.float32, device=self._device))


def _clear_faults(logits: Tensor) -> frozenset[int]:
    """Find rows that are not numbers, and zero them so that no later step has to bear them."""
    # Comparisons with NaN are false, and what finds extremes hands a NaN on.
    lowest, highest = torch.aminmax(logits)
    if bool((highest <= LOGIT_LIMIT) & (lowest >= -LOGIT_LIMIT)):
        return frozenset()
    healthy = (logits.amax(dim=-1) <= LOGIT_LIMIT) & (logits.amin(dim=-1) >= -LOGIT_LIMIT)
    faults = [row for row, ok in enumerate(healthy.tolist()) if not ok]
    if faults:
        logits.index_fill_(0, torch.tensor(faults, device=logits.device), 0.0)
    return frozenset(faults)
