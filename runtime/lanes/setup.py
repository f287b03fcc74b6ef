"""Puts lanes together for an engine: two where they can be had, else one, and says which and why.

Falling back is no failure: the worker serves all the same, with the scheduler that it was given. It
says so in its log and to everybody who asks (`LaneReport`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from twinflow.parallel.partition.backends.base import Backend, Place
from twinflow.parallel.partition.backends.names import NONE
from twinflow.parallel.partition.backends.registry import Choice, choose_backend
from twinflow.parallel.partition.control import Controller, Mode
from twinflow.parallel.partition.layout import Grid
from twinflow.parallel.partition.record import DecisionLog, Setup
from twinflow.runtime.cost.base import StepTimes
from twinflow.runtime.cost.contention import PUBLISHED
from twinflow.runtime.cost.lanes import LaneTimes
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.lanes.base import Lanes
from twinflow.runtime.lanes.division import ControlledDivision
from twinflow.runtime.lanes.fallback import FallbackLanes
from twinflow.runtime.lanes.one import OneLane
from twinflow.runtime.lanes.options import LaneOptions, LaneReport
from twinflow.runtime.lanes.two import TwoLanes
from twinflow.runtime.model_executor import ModelExecutor


@dataclass(frozen=True, slots=True)
class LaneParts:
    """What lanes are made of.

    Attributes:
        executor: of the only lane, or of the one for prompts.
        second: makes the executor of the other one; None if there can be none, for a reason.
        obstacle: the reason.
        blocks: of the engine.
        times: of steps; None if they are not known.
        num_layers: of the model.
        device: that computes.
    """

    executor: ModelExecutor
    second: Callable[[], ModelExecutor] | None
    obstacle: str
    blocks: BlockManager
    times: StepTimes | None
    num_layers: int
    device: str


def make_lanes(options: LaneOptions, parts: LaneParts) -> tuple[Lanes, LaneReport]:
    """The lanes that were asked for, or one, and a report.

    Raises:
        ConfigError: nobody knows the backend, or decisions cannot be written where they should be.
    """
    place = Place(parts.device, options.cores)
    if parts.second is None and options.backend != NONE:
        choice = Choice.undivided(options.backend, place, parts.obstacle)
    else:
        choice = choose_backend(options.backend, place)
    backend, log = choice.backend, structlog.get_logger()
    if choice.reason:
        log.warning("one lane for prompts and decoding", wanted=choice.wanted, reason=choice.reason)
    if backend.grid is None or parts.second is None:
        report = LaneReport(choice.wanted, backend.name, backend.describe(), choice.reason)
        return OneLane(parts.executor), report
    times, rule = _rule(options, parts.times)
    two = _two(options, parts, times, backend, backend.grid, parts.second())
    description = f"{backend.describe()}; {rule}"
    log.info("two lanes", wanted=choice.wanted, backend=backend.name, description=description)
    lanes = FallbackLanes(two, OneLane(parts.executor))
    return lanes, LaneReport(choice.wanted, backend.name, description)


def _rule(options: LaneOptions, times: StepTimes | None) -> tuple[LaneTimes | None, str]:
    """What decides who gets which part of the device, if anything does, and that in words."""
    if not isinstance(times, CostModel):
        return None, "the split stays: step times are not known (twinflow profile)"
    if times.curves is None:
        return None, "the split stays: the profile was measured on the whole device only"
    slacks = f"{options.prefill_slack:g} for prefill, {options.decode_slack:g} for decoding"
    if times.contention is None:
        structlog.get_logger().info(
            "no steps were measured side by side: lanes are taken to slow each other's traffic "
            "down by what was published, at most",
            at_most=PUBLISHED.memory,
            remedy="twinflow profile",
        )
    return LaneTimes(times), f"slacks {slacks}"


def _two(
    options: LaneOptions,
    parts: LaneParts,
    times: LaneTimes | None,
    backend: Backend,
    grid: Grid,
    second: ModelExecutor,
) -> TwoLanes:
    control = options.control(grid)
    record: DecisionLog | None = None
    if options.decisions is not None:
        record = DecisionLog(options.decisions, Setup(control, grid))
    controller = Controller(control, grid, record.write if record else None)
    division = ControlledDivision(
        controller, times, parts.blocks.use, record.close if record else lambda: None
    )
    executors = {Mode.PREFILL: parts.executor, Mode.DECODE: second}
    return TwoLanes(executors, backend, division, num_layers=parts.num_layers)
