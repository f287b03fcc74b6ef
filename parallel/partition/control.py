"""Decides how a device is divided, each time one of its lanes forms a batch.

After Nexus (arXiv 2507.06608, section 4 and algorithm 1). One phase is favoured, which one
following from how full KV memory is: decoding frees it, so it is favoured while it is scarce. The
favoured phase gets all that the other one can spare, that is, as long as the other one is not
slower than its slack allows, compared with having the device to itself. The search begins at the
present split and takes steps, so that a decision costs a few predictions.

Guards that the algorithm as printed lacks:

    floor          no lane gets less than the grid's smallest part
    feasibility    if no split keeps both phases within their slacks, the favoured phase is
                   kept within its own; as printed it would be the other way round
    monotonicity   so favouring prefill never gives it less than favouring decode would
    bands          the mode and the split change only for a difference that matters; a split that
                   breaks the slack is left for any

Pure: no clock, no devices. A decision says what it saw, and can be made again from that.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

import msgspec

from twinflow.parallel.partition.layout import Grid, Layout

# These leave a choice on Hopper's curves, where Nexus's own (1.3 and 1.1) leave none; a tighter one
# for decoding makes prompts wait for little (`benchmarks.lanes`).
PREFILL_SLACK = 1.5
DECODE_SLACK = 1.5


class Mode(StrEnum):
    """Which phase is favoured."""

    PREFILL = "prefill"
    DECODE = "decode"


class Reason(StrEnum):
    """Why a layout was chosen."""

    NO_DECODE = "nothing decodes"
    NO_PREFILL = "no prompt is computed"
    SLACK = "all that the other phase can spare"
    INFEASIBLE = "both slacks cannot be kept, the favoured phase keeps its own"
    SETTLED = "too near the present split to change"
    UNKNOWN = "step times are not known, the split stays"


class Forecast(Protocol):
    """Predicted step times of the batches that the lanes are about to run, in seconds."""

    def alone(self) -> tuple[float, float]:
        """Of the prefill and the decode step, each with the whole device to itself."""
        ...

    def split(self, layout: Layout) -> tuple[float, float]:
        """Of the prefill and the decode step, next to each other on a layout.

        More processors never make a lane slower, nor the other one faster.
        """
        ...


class ControlConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a device is divided.

    Attributes:
        prefill_slack: alpha; what a prefill step may take, in times of what it takes alone.
        decode_slack: beta; what a decode step may take, likewise.
        kv_high: decoding is favoured above this use of KV memory.
        kv_low: and until its use falls below this.
        delta: processors by which a split must differ from the present one to be taken; unless
            said otherwise two layouts of an H100 (see `LaneOptions.control` for other devices).
    """

    prefill_slack: float = PREFILL_SLACK
    decode_slack: float = DECODE_SLACK
    kv_high: float = 0.70
    kv_low: float = 0.62
    delta: int = 32

    def __post_init__(self) -> None:
        if not (self.prefill_slack >= 1.0 and self.decode_slack >= 1.0):
            raise ValueError("slacks are at least 1: no phase is faster than alone")
        if not 0.0 <= self.kv_low <= self.kv_high <= 1.0:
            raise ValueError(f"0 <= kv_low <= kv_high <= 1, not {self.kv_low} and {self.kv_high}")


class Standing(msgspec.Struct, frozen=True):
    """What is remembered from one decision to the next.

    Attributes:
        mode: the phase that was favoured.
        split: index of the last split with two lanes.
    """

    mode: Mode
    split: int


class Inputs(msgspec.Struct, frozen=True):
    """What a decision is made from, besides times.

    Attributes:
        prefills: there is a prompt to compute.
        decodes: there is something to decode.
        kv_use: share of KV blocks that are held.
    """

    prefills: bool
    decodes: bool
    kv_use: float


class Decision(msgspec.Struct, frozen=True):
    """What was decided, from what, and why.

    Attributes:
        inputs: see above.
        before: what was remembered.
        alone: predicted seconds of the prefill and decode step on the whole device; None if only
            one lane has work, or times are not known.
        times: the same on each split that was looked at, by processors of the prefill lane.
        best: split that the search found; None if there was no search.
        after: what to remember.
        layout: for each lane's next launch.
        reason: why.
    """

    inputs: Inputs
    before: Standing
    alone: tuple[float, float] | None
    times: dict[int, tuple[float, float]]
    best: int | None
    after: Standing
    layout: Layout
    reason: Reason


def decide(
    config: ControlConfig, grid: Grid, before: Standing, inputs: Inputs, forecast: Forecast | None
) -> Decision:
    """Choose a layout.

    Args:
        config: slacks and bands.
        grid: layouts to choose from.
        before: what the decision before this one left.
        inputs: what there is to do.
        forecast: asked only if both lanes have work; None if nobody knows how long steps take:
            the split stays then, and a lane that has work alone still gets everything.
    """
    mode = _mode(config, before.mode, inputs.kv_use)
    if not (inputs.prefills and inputs.decodes):
        after = Standing(mode, before.split)
        layout = grid.all_decode if not inputs.prefills else grid.all_prefill
        reason = Reason.NO_PREFILL if not inputs.prefills else Reason.NO_DECODE
        return Decision(inputs, before, None, {}, None, after, layout, reason)
    if forecast is None:
        after, layout = Standing(mode, before.split), grid.layout(before.split)
        return Decision(inputs, before, None, {}, None, after, layout, Reason.UNKNOWN)
    search = _Search(config, grid, forecast)
    best, reason = search.best(mode, before.split)
    split = best
    if best != before.split:
        distance = abs(grid.splits[best] - grid.splits[before.split])
        if distance < config.delta and search.bearable(before.split, mode, reason):
            split, reason = before.split, Reason.SETTLED
    after = Standing(mode, split)
    alone, layout = search.alone, grid.layout(split)
    return Decision(inputs, before, alone, search.times, best, after, layout, reason)


def _mode(config: ControlConfig, before: Mode, kv_use: float) -> Mode:
    if kv_use > config.kv_high:
        return Mode.DECODE
    return Mode.PREFILL if kv_use < config.kv_low else before


class _Search:
    """Walks the grid; every split is predicted at most once."""

    def __init__(self, config: ControlConfig, grid: Grid, forecast: Forecast) -> None:
        self._grid = grid
        self._forecast = forecast
        self._last = len(grid.splits) - 1
        self.alone = forecast.alone()
        self.times: dict[int, tuple[float, float]] = {}
        prefill, decode = self.alone
        self._limits = (config.prefill_slack * prefill, config.decode_slack * decode)

    def best(self, mode: Mode, start: int) -> tuple[int, Reason]:
        """The index of the best split, found from `start`."""
        if mode is Mode.PREFILL:
            most = self._most_prefill(start)
            if self._prefill_keeps_up(most):
                return most, Reason.SLACK
            least = self._least_prefill(most)
            return least, Reason.INFEASIBLE
        least = self._least_prefill(start)
        if self._decode_keeps_up(least):
            return least, Reason.SLACK
        most = self._most_prefill(least)
        return most, Reason.INFEASIBLE

    def bearable(self, index: int, mode: Mode, reason: Reason) -> bool:
        """Whether a split keeps the slack by which the best one was found."""
        if (mode is Mode.PREFILL) == (reason is Reason.SLACK):
            return self._decode_keeps_up(index)
        return self._prefill_keeps_up(index)

    def _most_prefill(self, index: int) -> int:
        """The largest split that keeps decoding within its slack; the floor if none does."""
        while index > 0 and not self._decode_keeps_up(index):
            index -= 1
        while index < self._last and self._decode_keeps_up(index + 1):
            index += 1
        return index

    def _least_prefill(self, index: int) -> int:
        """The smallest split that keeps prefill within its slack; the ceiling if none does."""
        while index < self._last and not self._prefill_keeps_up(index):
            index += 1
        while index > 0 and self._prefill_keeps_up(index - 1):
            index -= 1
        return index

    def _prefill_keeps_up(self, index: int) -> bool:
        return self._predicted(index)[0] <= self._limits[0]

    def _decode_keeps_up(self, index: int) -> bool:
        return self._predicted(index)[1] <= self._limits[1]

    def _predicted(self, index: int) -> tuple[float, float]:
        key = self._grid.splits[index]
        found = self.times.get(key)
        if found is None:
            found = self.times[key] = self._forecast.split(self._grid.layout(index))
        return found


class Controller:
    """Remembers what decisions leave, and what each lane runs on.

    Lanes adopt a layout one by one, each at its own next launch: waiting for each other would
    leave both idle. For one step at most they may so be on parts of the device that overlap or do
    not fill it, which costs time and never correctness.

    Args:
        config: slacks and bands.
        grid: layouts to choose from.
        on_decision: told every decision.
    """

    def __init__(
        self,
        config: ControlConfig,
        grid: Grid,
        on_decision: Callable[[Decision], None] | None = None,
    ) -> None:
        self._config = config
        self._grid = grid
        self._on_decision = on_decision
        self._standing = Standing(Mode.PREFILL, grid.middle)
        self._wanted = grid.layout(grid.middle)
        self._adopted = dict.fromkeys(Mode, self._wanted)
        self.switches = 0

    @property
    def layout(self) -> Layout:
        """What was decided last."""
        return self._wanted

    @property
    def settled(self) -> bool:
        """Whether both lanes run on the layout that was decided last."""
        return all(layout == self._wanted for layout in self._adopted.values())

    def decide(self, inputs: Inputs, forecast: Forecast | None) -> Decision:
        """Decide; takes effect at the lanes' next launches."""
        decision = decide(self._config, self._grid, self._standing, inputs, forecast)
        self._standing = decision.after
        self.switches += decision.layout != self._wanted
        self._wanted = decision.layout
        if self._on_decision is not None:
            self._on_decision(decision)
        return decision

    def adopt(self, lane: Mode) -> Layout:
        """What a lane runs on from its launch now."""
        self._adopted[lane] = self._wanted
        return self._wanted
