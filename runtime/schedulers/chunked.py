"""Stall-free batching with chunked prefill, as in Sarathi-Serve (OSDI '24, arXiv 2403.02310).

A step has a budget of rows: decode rows first, and prompts take what is left, in chunks.

With an objective for the time between tokens and a model of step times, chunks are cut further
(SLOWeave's rule): every decoding request is due one objective after its latest token, and prompts
get the most rows with which the step is predicted to end before the earliest of them is due. Where
nothing decodes, or nothing is known of step times, the budget alone counts.
"""

from collections.abc import Sequence

from twinflow.runtime.cost.base import PhaseLoad, SegmentLoad, StepLoad
from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.base import SchedulerState
from twinflow.runtime.schedulers.draft import Draft
from twinflow.runtime.schedulers.search import largest
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.step_plan import RowGroup, StepPlan

# Prompts get so many rows even when decode rows alone are too slow for the objective: a device that
# cannot meet it must not stop computing prompts.
_LEAST_ROWS = 16


class ChunkedScheduler:
    """See the module."""

    def __init__(self, setup: SchedulerSetup) -> None:
        self._setup = setup

    def plan(self, state: SchedulerState, now: float) -> StepPlan:
        """See `Scheduler.plan`."""
        draft = self._draft(state, self._setup.limits.max_num_batched_tokens)
        prompts = draft.groups[len(draft.decoding) :]
        due = self._due(draft.decoding)
        if due is None or not prompts:
            return draft.plan()
        rows = sum(group.token_count for group in prompts)
        fitting = self._fitting(draft.groups, len(draft.decoding), rows, due - now)
        if fitting < rows:
            draft = self._draft(state, fitting)
        return draft.plan()

    def _draft(self, state: SchedulerState, prompt_rows: int) -> Draft:
        draft = Draft(self._setup, state)
        draft.decode()
        draft.budget = min(draft.budget, prompt_rows)
        draft.fill(draft.prompts(), draft.add_chunk)
        return draft

    def _due(self, decoding: Sequence[Request]) -> float | None:
        """When the next token of a decoding request is due, the earliest of all."""
        objective = self._setup.tbt_objective
        latest = [r.last_token_at for r in decoding if r.last_token_at is not None]
        if objective is None or self._setup.times is None or not latest:
            return None
        return min(latest) + objective

    def _fitting(
        self, groups: Sequence[RowGroup], num_decoding: int, rows: int, seconds: float
    ) -> int:
        """How many rows of prompts fit into a step of so many seconds."""
        times, num_layers = self._setup.times, self._setup.limits.num_layers
        if times is None:
            return rows
        alone = StepLoad.of(groups[:num_decoding])
        decode = sum((s.decode for s in alone.segments), PhaseLoad())
        decode += sum((s.prefill for s in alone.segments), PhaseLoad())

        def in_time(count: int) -> bool:
            load = SegmentLoad(num_layers, _first_rows(groups[num_decoding:], count), decode)
            return times.seconds(StepLoad((load,), len(groups))) <= seconds

        return largest(min(rows, _LEAST_ROWS), rows, in_time)


def _first_rows(groups: Sequence[RowGroup], count: int) -> PhaseLoad:
    """The load of the first rows of row groups."""
    load = PhaseLoad()
    for group in groups:
        taken = min(group.token_count, count)
        if taken:
            load += PhaseLoad.of(group.token_start, taken)
        count -= taken
    return load
