"""What a policy is shown of an engine while it plans a step for one of two lanes.

Prompts come in and are computed on one lane, and decode on the other. A policy sees the requests
of the lane that it plans for, less those in a step that is under way; the others hold seats and
blocks, and grow, like those whose KV is being received. So the same policies serve one lane and
two, here and in simulations.
"""

from collections.abc import Container, Sequence

from msgspec.structs import replace

from twinflow.parallel.partition.control import Mode
from twinflow.runtime.cost.base import PhaseLoad, SegmentLoad, StepLoad
from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.base import SchedulerState


def decodes(request: Request) -> bool:
    """Whether a request's next row is that of a generated token, through all layers.

    A wave that has crossed some of the layers stays with the lane that has its hidden states.
    """
    return request.num_uncomputed == 1 and bool(request.output_token_ids) and request.wave is None


def lane_state(state: SchedulerState, lane: Mode, under_way: Container[str]) -> SchedulerState:
    """The part of a state that a lane schedules.

    Args:
        state: of the whole engine.
        lane: which one.
        under_way: ids of the requests in steps that are being computed.
    """
    wanted = lane is Mode.DECODE
    shown: list[Request] = []
    hidden: list[Request] = []
    for request in state.running:
        ours = decodes(request) == wanted and request.request_id not in under_way
        (shown if ours else hidden).append(request)
    return replace(
        state,
        running=shown,
        waiting=() if wanted else state.waiting,
        num_parked=state.num_parked + len(hidden),
        growing=(*state.growing, *hidden),
    )


def decode_load(requests: Sequence[Request], num_layers: int, later: int = 0) -> StepLoad:
    """The step that decodes all of these requests, `later` steps from now."""
    rows = len(requests)
    context = sum(request.num_tokens for request in requests) + later * rows
    decode = PhaseLoad(rows, context, context)
    return StepLoad((SegmentLoad(num_layers, PhaseLoad(), decode),), rows)
