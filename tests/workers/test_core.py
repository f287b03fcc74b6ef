"""The core of a worker over an engine without a model."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.engines import (
    VOCAB,
    EngineSpec,
    FakeExecutor,
    create_engine,
    create_request,
    expected_output,
)
from tests.support.halting import HaltingExecutor, kept_busy
from tests.support.workers import eventually, within, worker_config

from twinflow.protos.errors import (
    EngineError,
    HandoffError,
    InvalidRequest,
    TwinflowError,
    Unavailable,
    WorkerLost,
)
from twinflow.runtime.executor import Work
from twinflow.runtime.lifecycle import ReceiveOrder
from twinflow.runtime.outputs import SampledToken, TokenDelta
from twinflow.runtime.request import Request
from twinflow.workers.core import WorkerCore


@dataclass(eq=False)
class Owner:
    """Keeps the tokens and the error of its requests."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    errors: dict[str, TwinflowError] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)

    def deliver(self, engine_id: str, delta: TokenDelta) -> None:
        self.tokens.setdefault(engine_id, []).extend(delta.token_ids)
        if delta.finish_reason is not None:
            self.finished.add(engine_id)

    def fail(self, engine_id: str, error: TwinflowError) -> None:
        assert engine_id not in self.errors
        self.errors[engine_id] = error

    def flush(self) -> None:
        """Nothing to do."""


@dataclass
class Fetcher:
    """Fetches nothing; says what it was told."""

    started: list[ReceiveOrder] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def start(self, order: ReceiveOrder) -> None:
        self.started.append(order)

    def cancel(self, engine_id: str) -> None:
        self.cancelled.append(engine_id)


@dataclass
class Setup:
    core: WorkerCore
    fetcher: Fetcher
    owner: Owner

    async def idle(self) -> None:
        """Nothing is held, and the engine's books are right."""
        await eventually(
            lambda: self.core.loop.snapshot.free_blocks == self.core.loop.snapshot.total_blocks,
            lambda: self.core.loop.snapshot,
        )
        await self.core.check_integrity()
        assert len(self.core.outputs) == 0


@asynccontextmanager
async def setup(
    executor: FakeExecutor | None = None, spec: EngineSpec | None = None
) -> AsyncIterator[Setup]:
    engine, _ = create_engine(spec, executor=executor)
    core = WorkerCore(worker_config(Path("nowhere"), "mixed-0"), engine, VOCAB)
    fetcher = Fetcher()
    core.start(fetcher)
    try:
        yield Setup(core, fetcher, Owner())
    finally:
        await core.loop.stop(5.0)


async def test_requests_are_served_and_forgotten() -> None:
    async with setup() as there:
        requests = [create_request(max_tokens=4) for _ in range(3)]
        for request in requests:
            there.core.submit(request, there.owner)
        await eventually(lambda: len(there.owner.finished) == 3, lambda: there.owner)
        for request in requests:
            expected = expected_output(request.prompt_token_ids, 4)
            assert there.owner.tokens[request.request_id] == expected
        await there.idle()


async def test_a_second_request_with_the_same_id_is_refused_and_the_first_goes_on() -> None:
    async with setup() as there:
        request, stranger = create_request(max_tokens=4), Owner()
        there.core.submit(request, there.owner)
        there.core.submit(create_request(request_id=request.request_id), stranger)
        assert isinstance(stranger.errors[request.request_id], InvalidRequest)
        await eventually(lambda: there.owner.finished, "the first request")
        assert stranger.tokens == {}
        await there.idle()


@pytest.mark.parametrize(
    "change",
    [
        lambda request: request.prompt_token_ids.append(VOCAB),
        lambda request: request.prompt_token_ids.append(-1),
        lambda request: request.output_token_ids.append(VOCAB + 5),
    ],
)
async def test_unknown_tokens_never_reach_the_engine(change: Callable[[Request], None]) -> None:
    async with setup() as there:
        request = create_request()
        change(request)
        there.core.submit(request, there.owner)
        error = there.owner.errors[request.request_id]
        assert isinstance(error, InvalidRequest)
        assert str(VOCAB) in str(error)
        await there.idle()


async def test_what_the_engine_refuses_reaches_the_owner() -> None:
    async with setup() as there:
        request = create_request(max_tokens=10_000)
        there.core.submit(request, there.owner)
        await eventually(lambda: there.owner.errors, "the refusal")
        assert there.owner.errors[request.request_id].code == "context_length_exceeded"
        await there.idle()


async def test_a_request_that_cannot_be_taken_in_costs_nobody_else() -> None:
    class Picky(FakeExecutor):
        def admit(self, request: Request) -> None:
            if request.cache_salt == "poison":
                raise ZeroDivisionError("poison")
            super().admit(request)

    async with setup(Picky(4)) as there:
        poison, good = create_request(cache_salt="poison"), create_request(max_tokens=3)
        there.core.submit(poison, there.owner)
        there.core.submit(good, there.owner)
        await eventually(lambda: there.owner.finished, "the good request")
        error = there.owner.errors[poison.request_id]
        assert isinstance(error, EngineError)
        assert "ZeroDivisionError" in str(error)
        await there.idle()


async def test_aborts_are_silent_and_free_everything() -> None:
    executor = HaltingExecutor(4, tokens=1)
    async with setup(executor) as there:
        request = create_request(max_tokens=100)
        there.core.submit(request, there.owner)
        await executor.halted()
        await eventually(lambda: there.owner.tokens, "a token")
        there.core.abort(request.request_id)
        there.core.abort("never there")
        executor.go_on()
        await there.idle()
        assert there.owner.errors == {}
        assert there.owner.finished == set()
        assert there.fetcher.cancelled == [request.request_id, "never there"]


async def test_orders_to_receive_reach_the_fetcher() -> None:
    async with setup() as there:
        request = create_request(9, fetch_from="a peer", max_tokens=2)
        there.core.submit(request, there.owner)
        await eventually(lambda: there.fetcher.started, "the order")
        (order,) = there.fetcher.started
        assert (order.request, order.first_block, len(order.blocks)) == (request, 0, 3)

        there.core.abort(request.request_id)
        assert there.fetcher.cancelled == [request.request_id]
        await there.core.check_integrity()
        # Bytes may still come: the blocks are kept until the fetcher says that none will.
        assert there.core.loop.snapshot.free_blocks == there.core.loop.snapshot.total_blocks - 3
        error = HandoffError("cancelled")
        there.core.loop.post(lambda engine: engine.receive_failed(request.request_id, error))
        await there.idle()


async def test_an_order_for_a_request_that_was_aborted_meanwhile_is_not_begun() -> None:
    """The abort comes while the order is on its way from the engine's thread."""
    async with setup() as there:
        request = create_request(9, fetch_from="a peer")
        there.core.submit(request, there.owner)
        # The engine thread reserves the blocks now; the event loop is not free to hear of it.
        await_receiving(there.core)
        there.core.abort(request.request_id)
        await there.idle()
        assert there.fetcher.started == []


def await_receiving(core: WorkerCore) -> None:
    """Keep the event loop until the engine has ordered to receive something."""
    while core.loop.snapshot.num_receiving == 0:
        pass


async def test_first_tokens_of_a_fetch_are_delivered() -> None:
    async with setup() as there:
        request = create_request(9, fetch_from="a peer", max_tokens=1)
        there.core.submit(request, there.owner)
        await eventually(lambda: there.fetcher.started, "the order")
        token = SampledToken(7, None)
        there.core.loop.post(
            lambda engine: engine.receive_first_token(request.request_id, token, (), 0)
        )
        await eventually(lambda: there.owner.finished, "the only token")
        assert there.owner.tokens[request.request_id] == [7]
        there.core.loop.post(lambda engine: engine.receive_done(request.request_id))
        await there.idle()


async def test_a_dead_engine_fails_its_requests_in_a_way_that_moves_them_elsewhere() -> None:
    def fails(work: Work) -> bool:
        return work.request.cache_salt == "poison"

    async with setup(FakeExecutor(4, fail=fails)) as there:
        fetching = create_request(9, fetch_from="a peer")
        there.core.submit(fetching, there.owner)
        await eventually(lambda: there.fetcher.started, "the order")
        for _ in range(3):
            there.core.submit(create_request(cache_salt="poison"), there.owner)
            await eventually(lambda: len(there.core.outputs) <= 1, "the end of the poison")
        await eventually(lambda: there.core.state.death, "the death")

        lost = there.owner.errors[fetching.request_id]
        assert isinstance(lost, WorkerLost)
        assert "mixed-0" in str(lost)
        assert "planted failure" in str(lost)
        assert fetching.request_id in there.fetcher.cancelled
        assert len(there.core.outputs) == 0
        assert there.core.stats().draining

        late = create_request()
        there.core.submit(late, there.owner)
        assert there.owner.errors[late.request_id] is lost
        assert await there.core.drain(5.0) == 0
        with pytest.raises(Unavailable):
            await there.core.check_integrity()


async def test_draining_waits_for_what_runs_and_refuses_the_rest() -> None:
    async with setup() as there:
        running, held = create_request(max_tokens=60), create_request(8, hold=True)
        for request in (running, held):
            there.core.submit(request, there.owner)
        await eventually(lambda: len(there.owner.tokens) == 2, "both to run")

        draining = asyncio.create_task(there.core.drain(30.0))
        await asyncio.sleep(0)
        late = create_request()
        there.core.submit(late, there.owner)
        assert isinstance(there.owner.errors[late.request_id], Unavailable)
        assert there.core.stats().draining
        await eventually(lambda: there.owner.finished, "the running request")
        assert not draining.done()  # another worker still reads the held one
        there.core.abort(held.request_id)
        assert await within(draining, "the end of the drain") == 0
        await there.idle()


async def test_draining_gives_up_at_its_deadline() -> None:
    async with setup() as there:
        held = create_request(8, hold=True)
        there.core.submit(held, there.owner)
        assert await there.core.drain(0.05) == 1
        there.core.abort(held.request_id)
        await there.idle()


async def test_statistics_say_what_the_engine_is_doing() -> None:
    executor = HaltingExecutor(4, tokens=1)
    async with setup(executor, EngineSpec(max_num_seqs=3)) as there:
        for kind in ({"hold": True}, {"fetch_from": "a peer"}):
            there.core.submit(create_request(9, **kind), there.owner)
        await eventually(lambda: there.fetcher.started and there.owner.tokens, "both")
        async with kept_busy(there.core.loop):
            there.core.submit(create_request(9, max_tokens=110), there.owner)
            there.core.submit(create_request(7), there.owner)
        await executor.halted()

        stats = there.core.stats()
        assert (stats.num_receiving, stats.num_waiting, stats.waiting_tokens) == (1, 1, 7 + 1)
        assert stats.leased_blocks == 3
        assert stats.total_blocks == 63
        assert stats.prompt_tokens == 18
        assert not stats.draining
        executor.go_on()
