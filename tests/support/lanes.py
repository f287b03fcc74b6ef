"""Lanes whose steps end when a test says so, and divisions and backends that move all the time."""

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from twinflow.parallel.partition.backends.base import Backend
from twinflow.parallel.partition.control import Mode
from twinflow.parallel.partition.layout import Grid, Layout
from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.engine import Engine
from twinflow.runtime.executor import Executor
from twinflow.runtime.lanes.base import LaneFigures, Step, StepOutcome
from twinflow.runtime.lanes.compute import compute
from twinflow.runtime.lanes.division import Division
from twinflow.runtime.lanes.two import TwoLanes


class ScriptedLanes:
    """Two lanes without threads: a step is computed as late as possible, when it ends.

    Which of two steps ends first is drawn. So whatever the engine does to the requests and blocks
    of a step that is under way is done before the step reads or writes anything.

    Args:
        executor: of both lanes.
        seed: of the draws.
        interruptions: chance that a wait ends without a step.
    """

    def __init__(self, executor: Executor, seed: int, interruptions: float = 0.1) -> None:
        self._executor = executor
        self._random = random.Random(seed)
        self._interruptions = interruptions
        self.under_way: dict[Mode | None, Step] = {}
        self.both = 0
        self.closed = False

    @property
    def figures(self) -> LaneFigures | None:
        return None

    def idle(self) -> Sequence[Mode]:
        return [lane for lane in (Mode.PREFILL, Mode.DECODE) if lane not in self.under_way]

    def begin(self, step: Step) -> None:
        assert step.lane is not None and step.lane not in self.under_way
        assert not (step.requests & self.requests), "a request is in two steps"
        self.under_way[step.lane] = step
        self.both += len(self.under_way) == 2

    @property
    def requests(self) -> frozenset[str]:
        """Whose rows are under way."""
        return frozenset().union(*(step.requests for step in self.under_way.values()))

    def over(self, timeout_s: float | None) -> Sequence[StepOutcome]:
        if self._random.random() < self._interruptions:
            return ()
        count = self._random.randint(1, len(self.under_way))
        lanes = self._random.sample(list(self.under_way), count)
        return [compute(self._executor, self.under_way.pop(lane)) for lane in lanes]

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class OrderedLanes(TwoLanes):
    """Two lanes whose steps end in an order that is drawn, whichever was computed first.

    Their threads compute as ever, and at the same time. The engine is told of an end once all steps
    under way are computed; so what it does depends on the seed and never on the machine.

    Args:
        executors: see `TwoLanes`.
        backend: likewise.
        division: likewise.
        num_layers: likewise.
        seed: of the order.

    Attributes:
        both: how often a step began beside another one.
    """

    def __init__(
        self,
        executors: Mapping[Mode, Executor],
        backend: Backend,
        division: Division,
        *,
        num_layers: int,
        seed: int,
    ) -> None:
        super().__init__(executors, backend, division, num_layers=num_layers)
        self._random = random.Random(seed)
        self._computed: dict[Mode, StepOutcome] = {}
        self._under_way: list[Mode] = []
        self.both = 0

    def idle(self) -> Sequence[Mode]:
        return [lane for lane in (Mode.PREFILL, Mode.DECODE) if lane not in self._under_way]

    def begin(self, step: Step) -> None:
        super().begin(step)
        assert step.lane is not None
        self._under_way.append(step.lane)
        self.both += len(self._under_way) == 2

    def over(self, timeout_s: float | None) -> Sequence[StepOutcome]:
        while len(self._computed) < len(self._under_way):
            for outcome in super().over(None):
                assert outcome.step.lane is not None
                self._computed[outcome.step.lane] = outcome
        count = self._random.randint(1, len(self._under_way))
        told = self._random.sample(self._under_way, count)
        self._under_way = [lane for lane in self._under_way if lane not in told]
        return [self._computed.pop(lane) for lane in told]


class EveryLayout:
    """Another layout for each step, of all that there are; a `Division`.

    Args:
        grid: of the backend.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._asked = 0

    def layout(self, lane: Mode, load: StepLoad, other: StepLoad) -> Layout:
        layouts = [self._grid.layout(index) for index in range(len(self._grid.splits))]
        layouts.append(self._grid.all_prefill if lane is Mode.PREFILL else self._grid.all_decode)
        self._asked += 1
        return layouts[self._asked % len(layouts)]

    def close(self) -> None:
        pass


@dataclass
class CountedThreads(Backend):
    """A backend that only sets how many threads compute: a lane's processors, whatever there are.

    Attributes:
        moves: where each lane has been, and on which thread.
        on_enter: called whenever a lane moves.
        on_settle: called whenever a lane has computed.
    """

    grid: Grid
    moves: list[tuple[Mode, Layout, int]] = field(default_factory=list)
    on_enter: Callable[[Mode, Layout], None] = lambda lane, layout: None
    on_settle: Callable[[Mode], None] = lambda lane: None
    closed: bool = False
    threads: int = field(default_factory=torch.get_num_threads)

    name = "counted"

    def enter(self, lane: Mode, layout: Layout) -> None:
        self.moves.append((lane, layout, threading.get_ident()))
        torch.set_num_threads(layout.prefill if lane is Mode.PREFILL else layout.decode)
        self.on_enter(lane, layout)

    def settle(self, lane: Mode) -> None:
        self.on_settle(lane)

    def describe(self) -> str:
        return f"{self.grid.processors} imagined processors"

    def close(self) -> None:
        torch.set_num_threads(self.threads)  # of threads to come, too
        self.closed = True


def check_conserved(engine: Engine) -> None:
    """Every block is idle, held by live sequences, or in quarantine."""
    blocks = engine.blocks
    live = blocks.holders - blocks.quarantined
    held = {block for name in live for block in blocks.blocks(name)}
    assert blocks.num_idle + len(held) + blocks.num_quarantined == blocks.num_blocks
