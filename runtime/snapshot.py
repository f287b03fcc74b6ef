"""An engine's load and totals at one moment, safe to read from any thread."""

from collections.abc import Mapping

import msgspec

from twinflow.runtime.engine import Engine
from twinflow.runtime.lanes.base import LaneFigures
from twinflow.runtime.layer_traffic import LayerTotals
from twinflow.runtime.speculative.account import SpeculationAccount
from twinflow.runtime.speculative.goodput.controller import GoodputFigures


class EngineSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one engine between two steps; blocks are those of all ranks that share them.

    Attributes:
        num_running: requests whose rows are scheduled.
        num_waiting: requests without blocks.
        num_receiving: requests whose KV is on its way.
        num_held: requests whose blocks another worker still reads.
        waiting_tokens: tokens that no step has computed yet, of waiting and running requests.
        free_blocks: blocks that can be allocated.
        total_blocks: blocks that requests can hold.
        leased_blocks: blocks of held requests.
        prompt_tokens: prompt tokens computed since the start.
        generation_tokens: tokens generated since the start.
        preemptions: since the start.
        prefix_queries: tokens of sequences admitted to be computed here, since the start; a prompt
            that another worker computes is counted there.
        prefix_hits: those of them that were in the prefix cache.
        steps: since the start.
        busy_seconds: in which a step was computed, since the start.
        experts: what experts did since the start, by index of their layer.
        quarantined_blocks: blocks of requests that were aborted while their rows are being
            computed.
        lanes: what two lanes have done since the start; None if there never were two.
        goodput: how often proposing was worth it; None if that is not asked.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_receiving: int = 0
    num_held: int = 0
    waiting_tokens: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    leased_blocks: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    steps: int = 0
    busy_seconds: float = 0.0
    experts: Mapping[int, LayerTotals] = msgspec.field(default_factory=dict)
    speculation: SpeculationAccount = msgspec.field(default_factory=SpeculationAccount)
    quarantined_blocks: int = 0
    lanes: LaneFigures | None = None
    goodput: GoodputFigures | None = None


def take_snapshot(engine: Engine) -> EngineSnapshot:
    """The figures of an engine now; call it on the engine's thread."""
    queues, blocks, counters = engine.queues, engine.blocks, engine.counters
    shards = engine.config.block_shards
    receiving = queues.receiving
    held = queues.held
    return EngineSnapshot(
        num_running=len(queues.running),
        num_waiting=len(queues.waiting),
        num_receiving=len(receiving),
        num_held=len(held),
        waiting_tokens=sum(
            [r.num_uncomputed for r in (*queues.waiting, *queues.running) if not r.fetch]
        ),
        free_blocks=blocks.num_idle * shards,
        total_blocks=blocks.num_blocks * shards,
        leased_blocks=sum(blocks.num_held(request.request_id) for request in held) * shards,
        prompt_tokens=counters.prompt_tokens,
        generation_tokens=counters.generation_tokens,
        preemptions=counters.preemptions,
        prefix_queries=blocks.counters.queries,
        prefix_hits=blocks.counters.hits,
        steps=counters.steps,
        busy_seconds=counters.busy_seconds,
        experts=dict(counters.experts),
        speculation=counters.speculation.copy(),
        quarantined_blocks=blocks.num_quarantined * shards,
        lanes=engine.lane_figures,
        goodput=engine.goodput,
    )
