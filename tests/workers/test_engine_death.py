"""A worker whose engine has failed for good says so to everybody, and nobody waits for it."""

import asyncio
import random
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.dispatchers import Reports
from tests.support.workers import (
    TOKEN,
    Oracle,
    attached,
    eventually,
    idle,
    peer_of,
    random_prompt,
    running,
    submission,
    within,
    worker_config,
)

from twinflow.cluster.dispatch.address import WorkerAddress
from twinflow.cluster.dispatch.admission import AdmissionLimits
from twinflow.cluster.dispatch.dispatcher import Dispatcher
from twinflow.cluster.dispatch.roster import Duty
from twinflow.cluster.gateway.backend import GenerationSpec, ModelInfo
from twinflow.protos.errors import WorkerLost
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.runtime.model_executor import ModelExecutor
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.workers.rpc import call_metadata, open_channel
from twinflow.workers.server import WorkerServer

PARAMS = SamplingParams(temperature=0, max_tokens=60, seed=0, ignore_eos=True)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[ModelExecutor]:
    """Executors whose steps fail from the moment they are put in here."""
    executors: set[ModelExecutor] = set()
    execute = ModelExecutor.execute

    def maybe_execute(self: ModelExecutor, *args: Any) -> Any:
        if self in executors:
            raise RuntimeError("the device is gone")
        return execute(self, *args)

    monkeypatch.setattr(ModelExecutor, "execute", maybe_execute)
    return executors


def break_engine(worker: WorkerServer, broken: set[ModelExecutor]) -> None:
    executor = worker.parts.built.engine.executor
    assert isinstance(executor, ModelExecutor)
    broken.add(executor)


async def kill_engine(worker: WorkerServer, broken: set[ModelExecutor]) -> None:
    """Fail steps until the engine gives up."""
    break_engine(worker, broken)
    async with attached(worker) as gateway:
        for _ in range(3):
            await gateway.complete(submission([5, 6], PARAMS))
    await eventually(lambda: worker.parts.core.state.death, "the death of the engine")


async def test_every_call_says_that_the_engine_is_dead(
    model: Path, broken: set[ModelExecutor]
) -> None:
    async with running(worker_config(model, "mixed-0")) as (worker,):
        async with attached(worker) as watching:
            await kill_engine(worker, broken)
            await within(watching.wait_ended(), "the end of an idle session")
            assert watching.error is not None
            assert "the device is gone" in (watching.error.details() or "")
        channel = open_channel(worker.description.address)
        stub, metadata = rpc.WorkerStub(channel), call_metadata(TOKEN)
        for call in (
            stub.Describe(pb.DescribeRequest(), metadata=metadata),
            stub.Attach(metadata=metadata).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await within(call, "the refusal")
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            assert (refused.value.details() or "").startswith("worker_lost: ")
        await channel.close()


async def test_a_decode_worker_goes_on_without_its_dead_prefill_worker(
    model: Path, oracle: Oracle, broken: set[ModelExecutor]
) -> None:
    configs = [worker_config(model, name) for name in ("prefill-0", "decode-0")]
    async with running(*configs) as (prefill, decode), attached(decode) as gateway:
        break_engine(prefill, broken)
        prompts = [random_prompt(random.Random(n), 60) for n in range(5)]
        for prompt in prompts:  # the first three kill the engine, the others find it dead
            answer = await gateway.complete(submission(prompt, PARAMS, peer_of(prefill)))
            assert tuple(answer.tokens) == oracle(prompt, PARAMS).token_ids
        assert prefill.parts.core.state.death is not None
        assert decode.parts.core.state.handoffs.failed == 5
        await idle(decode)
        await eventually(lambda: len(prefill.parts.sender) == 0, "the end of all hand-offs")
        assert prefill.parts.links.sending.num_leased == 0


async def test_a_prefill_worker_is_freed_by_the_death_of_the_decode_worker(
    model: Path, broken: set[ModelExecutor]
) -> None:
    configs = [worker_config(model, name) for name in ("prefill-0", "decode-0")]
    async with running(*configs) as (prefill, decode):
        async with attached(decode) as gateway:
            requests = [
                submission(random_prompt(random.Random(n), 180), PARAMS, peer_of(prefill))
                for n in range(6)
            ]
            answers = [await gateway.submit(request) for request in requests]
            await eventually(lambda: len(prefill.parts.sender) >= 2, "hand-offs")
            await kill_engine(decode, broken)
            for answer in answers:
                await within(answer.done.wait(), "the end of a request")
                assert answer.error is not None or answer.lost
        await idle(prefill)


async def test_requests_of_a_dead_engine_go_on_elsewhere_without_a_gap(
    model: Path, oracle: Oracle, broken: set[ModelExecutor]
) -> None:
    """What the gateway's dispatcher makes of it: the client sees every token, once."""
    configs = [worker_config(model, name) for name in ("mixed-0", "mixed-1")]
    async with running(*configs) as workers:
        info = ModelInfo("m", "r", 256, 300, "float32", 8, 0)
        dispatcher = Dispatcher(
            info,
            (2,),
            [Duty(WorkerAddress(w.config.worker_id, w.description.address)) for w in workers],
            TOKEN,
            limits=AdmissionLimits(),
            listener=Reports(),
        )
        dispatcher.start()
        await eventually(lambda: len(dispatcher.available) == len(workers), "up")
        victim = workers[0]

        async def complete(number: int) -> list[int]:
            prompt = random_prompt(random.Random(number), 40)
            spec = GenerationSpec(f"request-{number}", tuple(prompt), PARAMS)
            dispatcher.admit((spec,))
            tokens: list[int] = []
            async with aclosing(dispatcher.generate(spec)) as deltas:
                async for delta in deltas:
                    tokens += delta.token_ids
                    if number == 0 and len(tokens) == 5:
                        error = WorkerLost("the engine of worker mixed-0 failed for good: planted")
                        victim.parts.core.state.death = error
                        victim.parts.core.outputs.fail_all(error)
            return tokens

        completions = await asyncio.gather(*(complete(n) for n in range(6)))

        for number, tokens in enumerate(completions):
            prompt = random_prompt(random.Random(number), 40)
            assert tuple(tokens) == oracle(prompt, PARAMS).token_ids
        assert dispatcher.num_live == 0
        readiness = await dispatcher.readiness()
        assert not readiness.ready
        assert "mixed-0" in readiness.reason
        await dispatcher.close()
        await idle(workers[1])
