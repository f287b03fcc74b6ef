"""The schedules that `benchmarks.layered` compares. Builds no engine and measures nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from twinflow.runtime.schedulers.base import Scheduler, SchedulerState
from twinflow.runtime.schedulers.chunked import ChunkedScheduler
from twinflow.runtime.schedulers.draft import Draft
from twinflow.runtime.schedulers.layered import LayeredScheduler
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.step_plan import StepPlan

BASE = "chunked-512"
# Rows of a step, and tokens of a group of layers, at full lengths: the paper's settings.
_CHUNKS = (256, 512, 1024)
_WAVE = 8192
_GROUP = 512


class PrefillFirst:
    """Whole prompts as soon as they come; decoding waits meanwhile.

    What engines did before chunks: the fewest expert bytes and the longest stalls.

    Args:
        setup: of the policy.
    """

    def __init__(self, setup: SchedulerSetup) -> None:
        self._setup = setup

    def plan(self, state: SchedulerState, now: float) -> StepPlan:
        """See `Scheduler.plan`."""
        draft = Draft(self._setup, state)
        draft.fill(draft.prompts(), draft.add_chunk)
        if not draft.groups:
            draft = Draft(self._setup, state)
            draft.decode()
        return draft.plan()


@dataclass(frozen=True, slots=True)
class Arm:
    """A schedule.

    Attributes:
        name: of the schedule, at full lengths.
        rows: of a step.
        policy: makes the scheduler.
    """

    name: str
    rows: int
    policy: Callable[[SchedulerSetup], Scheduler]


def arms(scale: float) -> list[Arm]:
    """All schedules, the base first; with prompts, what is counted in their tokens is scaled."""

    def scaled(tokens: int) -> int:
        return max(1, round(scale * tokens))

    def layered(setup: SchedulerSetup) -> Scheduler:
        return LayeredScheduler(setup, tokens_per_group=scaled(_GROUP))

    chunked = [Arm(f"chunked-{rows}", scaled(rows), ChunkedScheduler) for rows in _CHUNKS]
    return [
        *sorted(chunked, key=lambda arm: arm.name != BASE),
        Arm("layered", scaled(_WAVE), layered),
        Arm("prefill-first", scaled(_WAVE), PrefillFirst),
    ]
