"""Lets a request in if memory lasts for outputs as long as those of the past (Past-Future,
LightLLM, ASPLOS '25, arXiv 2507.10150).

Past: how much a request will still generate is drawn from the latest output lengths that are
longer than what it has generated. Future: everybody grows by a token a step and gives everything
back at its end, so the need for memory peaks at the moment before one of them ends. The need is
computed for a few draws, and the worst of them counts.

Draws depend on nothing but a seed and the requests: the same state gives the same answer, and the
next step, with longer outputs, draws again.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from twinflow.runtime.output_history import OutputHistory
from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.base import SchedulerState

# Of the KV memory, what is left for errors of the prediction (LightLLM's figure).
_ERROR_SHARE = 0.05
_MOST_DRAWS = 5
_DRAW_BUDGET = 200


def peak_tokens(held: NDArray[np.int64], remaining: NDArray[np.int64]) -> NDArray[np.int64]:
    """Most tokens that requests hold at any time from now on.

    Each grows by a token a step and gives everything back after its last one. With the requests
    sorted by what remains, longest first, the j-th is alive together with those before it:

        peak = max over j of  remaining_j * j + held_1 + ... + held_j         (section 3)

    Args:
        held: [requests] tokens now.
        remaining: [..., requests] tokens still to come.

    Returns:
        [...], one peak for each set of requests.
    """
    order = np.argsort(-remaining, axis=-1, kind="stable")
    longest = -np.sort(-remaining, axis=-1)
    together = np.cumsum(held[order], axis=-1)
    alive = np.arange(1, len(held) + 1)
    peaks: NDArray[np.int64] = (longest * alive + together).max(axis=-1)
    return peaks


def draw_lengths(
    generated: NDArray[np.int64],
    longest: NDArray[np.int64],
    history: OutputHistory,
    uniform: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Draw how long outputs will be that have got so far.

    The candidates of a request are what it has, the longer ones of the past in order, and its
    limit; a draw is a place among them, between two neighbours if need be. As long as less than
    half of the history is filled, the limit stands in for what is missing.

    Args:
        generated: [requests] tokens so far.
        longest: [requests] tokens that each may generate at most.
        history: of the past.
        uniform: [draws, requests] in [0, 1).

    Returns:
        [draws, requests], between `generated` and `longest`.
    """
    past = history.ascending
    first = np.searchsorted(past, generated, side="right")
    known = len(past) - first
    unknown = max(history.window // 2 - len(past), 1)

    def candidate(index: NDArray[np.int64]) -> NDArray[np.int64]:
        in_past = np.clip(first + index - 1, 0, max(len(past) - 1, 0))
        values = past[in_past] if len(past) else np.broadcast_to(longest, index.shape)
        values = np.where(index > known, longest, values)
        return np.minimum(np.where(index == 0, generated, values), longest)

    place = uniform * (known + unknown)
    below = place.astype(np.int64)
    low, high = candidate(np.stack((below, below + 1)))
    drawn: NDArray[np.int64] = np.ceil(low + (place - below) * (high - low)).astype(np.int64)
    return drawn


class PastFuture:
    """See the module.

    Args:
        seed: of the draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def reserve(self, state: SchedulerState, holders: Sequence[Request], candidate: Request) -> int:
        """See `Admission.reserve`."""
        blocks = state.blocks
        growing = [r for r in (*holders, candidate) if not r.hold]
        generated = _integers(len(r.output_token_ids) for r in growing)
        longest = _integers(r.params.max_tokens or 0 for r in growing)
        own = _integers(_own_blocks(state, r) * blocks.block_size for r in growing)
        draws = min(_MOST_DRAWS, _DRAW_BUDGET // len(growing) + 1) if growing else 0
        if not draws:
            return 0
        uniform = self._uniform(draws, growing, int(generated.sum()))
        remaining = draw_lengths(generated, np.maximum(longest, generated), state.history, uniform)
        remaining = remaining - generated
        more = int(peak_tokens(own, remaining).max()) - int(own.sum())
        return blocks.blocks_for(more) + int(_ERROR_SHARE * blocks.num_blocks)

    def _uniform(self, draws: int, requests: Sequence[Request], moment: int) -> NDArray[np.float64]:
        """[draws, requests] numbers in [0, 1) that depend on nothing but the arguments."""
        names = np.array([r.order for r in requests], dtype=np.uint64)
        rounds = np.arange(draws, dtype=np.uint64)[:, None]
        keys = _mix(_mix(_mix(rounds + np.uint64(self._seed)) ^ np.uint64(moment)) ^ names)
        uniform: NDArray[np.float64] = (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return uniform


def _own_blocks(state: SchedulerState, request: Request) -> int:
    """Blocks that a request gives back at its end; those that others share stay."""
    blocks = state.blocks
    if blocks.num_held(request.request_id):
        return blocks.num_reclaimable(request.request_id)
    return blocks.blocks_for(request.num_tokens) - len(blocks.match(request).blocks)


def _integers(values: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(values, dtype=np.int64)


def _mix(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA '14)."""
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
