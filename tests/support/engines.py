"""Engines without a model: an executor with behaviour, and builders with few arguments."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.base import StepTimes
from twinflow.runtime.engine import Engine
from twinflow.runtime.executor import LayersDone, Work
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.kv_progress import KVProgress
from twinflow.runtime.lanes.base import Lanes
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.outputs import SampledRun, SampledToken, TokenDelta, TokenLogprobs
from twinflow.runtime.request import Request
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.schedulers import create_scheduler
from twinflow.runtime.schedulers.base import Scheduler, SchedulerLimits
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.drafters.base import Outlook
from twinflow.runtime.speculative.goodput.controller import GoodputController
from twinflow.runtime.speculative.speculation import judge

NUM_LAYERS = 4
VOCAB = 997
EOS = 0


def next_token(token_ids: Sequence[int]) -> int:
    """The token that the fake model puts behind a sequence; depends on every token of it."""
    value = 1469598103934665603
    for token in token_ids:
        value = (value ^ (token + 1)) * 1099511628211 % 2**64
    return 1 + value % (VOCAB - 1)


# From the tokens of a sequence and a limit to tokens that may come next, or a tree of them.
Guess = Callable[[Sequence[int], int], Sequence[int] | Draft]


class FakeExecutor:
    """Computes `next_token`, but only from what the block tables really lead to.

    Each computed row writes its token to its slot, layer by layer; sampling reads the whole
    sequence back through the block table. A wrong block, a missing row, a row computed twice, a
    layer left out or computed twice changes the output or raises.
    """

    def __init__(self, block_size: int, *, fail: Callable[[Work], bool] | None = None) -> None:
        self.block_size = block_size
        self.cells: dict[tuple[int, int], int] = {}
        self.layers: dict[tuple[int, int], int] = {}  # how many of a cell are written
        self.unfinished: dict[str, tuple[int, int, int]] = {}
        self.admitted: set[str] = set()
        self.batches: list[list[tuple[str, int, int]]] = []
        self.guess: Guess | None = None
        self._fail = fail

    def admit(self, request: Request) -> None:
        self.admitted.add(request.request_id)

    def accept(self, request_id: str, token_id: int) -> None:
        assert request_id in self.admitted

    def forget(self, request_id: str) -> None:
        self.admitted.discard(request_id)
        self.restart(request_id)

    def restart(self, request_id: str) -> None:
        self.unfinished.pop(request_id, None)

    def execute(self, work: Sequence[Work], on_layers: LayersDone | None) -> list[SampledRun]:
        self.batches.append(
            [(w.request.request_id, w.group.token_start, w.group.token_count) for w in work]
        )
        for item in work:
            if self._fail is not None and self._fail(item):
                raise RuntimeError("planted failure")
            self._write(item)
        if on_layers is not None:
            on_layers(0, NUM_LAYERS // 2)
            on_layers(NUM_LAYERS // 2, NUM_LAYERS)
        return [self._verified(item) for item in work if item.group.samples]

    def _verified(self, item: Work) -> SampledRun:
        """What each sampled row says, as far as proposals agree with it."""
        if item.branches:
            said = {
                node: SampledToken(next_token(self.read(branch.blocks, position + 1)))
                for branch in item.branches
                for position, node in enumerate(branch.nodes, branch.start)
            }
            return judge(item.draft, [said[node] for node in range(1 + len(item.draft))])
        end = item.group.token_end
        ends = range(end - item.group.drafted, end + 1)
        rows = [SampledToken(next_token(self.read(item.blocks, count))) for count in ends]
        return judge(item.draft, rows)

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        if self.guess is None:
            return [NOTHING] * len(requests)
        asked = zip(requests, limits, strict=True)
        found = [self.guess(request.token_ids, limit) for request, limit in asked]
        return [draft if isinstance(draft, Draft) else Draft.chain(draft) for draft in found]

    def outlook(self, requests: Sequence[Request], nodes: int) -> Outlook:
        return Outlook()

    def take_traffic(self) -> list[LayerTraffic]:
        """As if a row's position chose one of four experts, of 100 bytes, in every layer."""
        rows = [0] * 4
        for _, start, count in self.batches[-1]:
            for position in range(start, start + count):
                rows[position % 4] += 1
        distinct = sum(count > 0 for count in rows)
        return [
            LayerTraffic(layer, tuple(rows), distinct, 100 * distinct)
            for layer in range(NUM_LAYERS)
        ]

    def _write(self, item: Work) -> None:
        group, request_id = item.group, item.request.request_id
        start, count = group.token_start, group.token_count
        if group.layer_start:
            assert self.unfinished.pop(request_id) == (start, count, group.layer_start)
        if group.layer_end < NUM_LAYERS:
            assert request_id not in self.unfinished
            self.unfinished[request_id] = (start, count, group.layer_end)
        if item.branches:
            self._write_branches(item)
            return
        for position, token in enumerate(item.token_ids, start):
            cell = self._cell(item.blocks, position)
            if group.layer_start:
                assert (self.cells[cell], self.layers[cell]) == (token, group.layer_start)
            self.cells[cell], self.layers[cell] = token, group.layer_end

    def _write_branches(self, item: Work) -> None:
        """The rows of a tree, to every table that has them."""
        copied = [branch for branch in item.branches if branch.copied_block]
        for branch in copied:
            to = branch.blocks[branch.start // self.block_size]
            self.copy_blocks(self, [branch.copied_block], [to])
        rows: list[int] = []
        for branch in item.branches:
            above = [rows[len(rows) - distance] for distance in branch.ancestors]
            own = [item.token_ids[node] for node in branch.nodes]
            for position, token in enumerate([*above, *own], branch.start - len(above)):
                cell = self._cell(branch.blocks, position)
                self.cells[cell], self.layers[cell] = token, NUM_LAYERS
            rows += own

    def _cell(self, blocks: Sequence[int], position: int) -> tuple[int, int]:
        return blocks[position // self.block_size], position % self.block_size

    def read(self, blocks: Sequence[int], count: int) -> list[int]:
        """The tokens behind the first `count` slots of a block table."""
        cells = [self._cell(blocks, position) for position in range(count)]
        assert all(self.layers[cell] == NUM_LAYERS for cell in cells)
        return [self.cells[cell] for cell in cells]

    def check_final(self, progress: KVProgress) -> None:
        """The KV that is said to be final is written."""
        for position in range(progress.token_start, progress.token_end):
            assert self.layers[self._cell(progress.blocks, position)] >= progress.end_layer

    def copy_blocks(
        self, source: "FakeExecutor", source_blocks: Sequence[int], blocks: Sequence[int]
    ) -> None:
        """Receive blocks from another executor."""
        for theirs, ours in zip(source_blocks, blocks, strict=True):
            for slot in range(self.block_size):
                if (theirs, slot) in source.cells:
                    self.cells[ours, slot] = source.cells[theirs, slot]
                    self.layers[ours, slot] = source.layers[theirs, slot]


class ManualClock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """A small engine; defaults suit most tests."""

    num_blocks: int = 64
    block_size: int = 4
    block_shards: int = 1
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 16
    max_model_len: int = 128
    enable_prefix_caching: bool = True
    scheduler: str = "chunked"
    prefill_order: str = "fcfs"
    admission: str = "aggressive"
    tbt_objective: float | None = None
    ttft_objective: float | None = None
    times: StepTimes | None = None
    num_speculative_tokens: int = 0


def create_engine(
    spec: EngineSpec | None = None,
    *,
    executor: FakeExecutor | None = None,
    clock: Callable[[], float] | None = None,
    on_kv: Callable[[KVProgress], None] | None = None,
    wrap: Callable[[Scheduler, SchedulerLimits], Scheduler] | None = None,
    lanes: Callable[[FakeExecutor], Lanes] | None = None,
    goodput: GoodputController | None = None,
) -> tuple[Engine, FakeExecutor]:
    """An engine over a fake executor; `wrap` may put something round its scheduler, and `lanes` may
    compute in another way than on one lane."""
    spec = spec or EngineSpec()
    entry_tokens = spec.block_size * spec.block_shards
    config = EngineConfig(
        max_model_len=min(spec.max_model_len, (spec.num_blocks - 1) * entry_tokens),
        num_blocks=spec.num_blocks,
        block_size=spec.block_size,
        block_shards=spec.block_shards,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        enable_prefix_caching=spec.enable_prefix_caching,
        scheduler=spec.scheduler,
        prefill_order=spec.prefill_order,
        admission=spec.admission,
        tbt_objective=spec.tbt_objective,
        ttft_objective=spec.ttft_objective,
        num_speculative_tokens=spec.num_speculative_tokens,
        check_steps=True,
    )
    blocks = BlockManager(
        spec.num_blocks,
        entry_tokens,
        model_fingerprint="model",
        layout_digest="layout",
        enable_prefix_caching=spec.enable_prefix_caching,
    )
    setup = SchedulerSetup.of(config, NUM_LAYERS, spec.times)
    scheduler = create_scheduler(spec.scheduler, setup)
    fake = executor or FakeExecutor(entry_tokens)
    engine = Engine(
        config,
        fake,
        blocks,
        wrap(scheduler, setup.limits) if wrap else scheduler,
        num_layers=NUM_LAYERS,
        clock=clock or ManualClock(),
        on_kv=on_kv,
        lanes=lanes(fake) if lanes else None,
        goodput=goodput,
    )
    return engine, fake


_ids = itertools.count()


def create_request(
    prompt: Sequence[int] | int = 10, max_tokens: int = 4, **changes: Any
) -> Request:
    """A greedy request; an int prompt is that many tokens no other request has."""
    number = next(_ids)
    if isinstance(prompt, int):
        prompt = [(number * 131 + index * 7) % VOCAB for index in range(prompt)]
    params = changes.pop("params", None) or SamplingParams(temperature=0, max_tokens=max_tokens)
    assert isinstance(params, SamplingParams)
    request = Request(request_id=f"r{number}", prompt_token_ids=list(prompt), params=params)
    for name, value in changes.items():
        setattr(request, name, value)
    return request


def expected_output(prompt: Sequence[int], max_tokens: int) -> list[int]:
    """What the fake model generates, computed in one go."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


@dataclass
class Collected:
    """The outputs of an engine, by request."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    last: dict[str, TokenDelta] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)

    def take(self, engine: Engine) -> None:
        """Add what the engine has put out."""
        outputs = engine.take_outputs()
        for request_id, delta in outputs.deltas:
            assert request_id not in self.failures
            assert request_id not in self.last or self.last[request_id].finish_reason is None
            self.tokens.setdefault(request_id, []).extend(delta.token_ids)
            self.logprobs.setdefault(request_id, []).extend(delta.logprobs)
            self.last[request_id] = delta
        for request_id, error in outputs.failures:
            assert request_id not in self.failures
            self.failures[request_id] = error


def run(engine: Engine, collected: Collected | None = None, max_steps: int = 2000) -> Collected:
    """Step an engine until it has nothing to do, checking its integrity after every step."""
    collected = collected or Collected()
    for _ in range(max_steps):
        progressed = engine.runnable and engine.step()
        collected.take(engine)
        engine.check_integrity()
        if not progressed:
            return collected
    raise AssertionError(f"the engine still runs after {max_steps} steps")
