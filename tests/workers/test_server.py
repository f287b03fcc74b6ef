"""A worker's life: what it says of itself, how it refuses to start, how it stops."""

import asyncio
import gc
import os
import random
import threading
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from tests.support.link_pairs import Resources, resources
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

from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.workers.rpc import PROTOCOL_VERSION, call_metadata, open_channel
from twinflow.workers.server import WorkerServer

PARAMS = SamplingParams(temperature=0, max_tokens=20, seed=0, ignore_eos=True)


async def test_a_worker_says_who_it_is(model: Path) -> None:
    config = worker_config(model, "decode-3", epoch=5)
    async with running(config) as (worker,):
        channel = open_channel(worker.description.address)
        said = await rpc.WorkerStub(channel).Describe(
            pb.DescribeRequest(), metadata=call_metadata(TOKEN)
        )
        await channel.close()
        assert (said.worker_id, said.epoch, said.role) == ("decode-3", 5, pb.ROLE_DECODE)
        assert said.protocol_version == PROTOCOL_VERSION
        assert said.pid == os.getpid()
        assert (said.block_size, said.num_blocks) == (8, 160)
        assert (said.max_model_len, said.max_num_seqs) == (256, 16)
        assert (said.vocab_size, said.dtype) == (300, "float32")
        assert said.kv_layout == worker.parts.built.layout.digest()
        assert said.model_fingerprint == worker.parts.built.fingerprint
        assert said.address == worker.description.address


async def test_workers_with_the_same_model_mean_the_same_blocks(model: Path) -> None:
    configs = [worker_config(model, name) for name in ("prefill-0", "decode-0")]
    wide = worker_config(model, "prefill-1", dtype="bfloat16")
    async with running(*configs, wide) as (first, second, other):
        assert first.description.model_fingerprint == second.description.model_fingerprint
        assert first.description.kv_layout == second.description.kv_layout
        assert first.description.model_fingerprint != other.description.model_fingerprint
        assert first.description.kv_layout != other.description.kv_layout


async def test_a_worker_that_cannot_listen_says_where(model: Path) -> None:
    worker = WorkerServer(worker_config(model, "mixed-0", host="192.0.2.1"))
    with pytest.raises(ConfigError, match=r"mixed-0 cannot listen on 192\.0\.2\.1"):
        await worker.start()
    await worker.stop(0.0)


async def test_a_worker_without_a_secret_does_not_start(model: Path) -> None:
    worker = WorkerServer(worker_config(model, "mixed-0", token=""))
    with pytest.raises(ConfigError, match="token"):
        await worker.start()
    await worker.stop(0.0)


async def test_a_worker_without_a_model_does_not_start(tmp_path: Path) -> None:
    worker = WorkerServer(worker_config(tmp_path / "nowhere", "mixed-0"))
    with pytest.raises(CheckpointError, match="nowhere"):
        await worker.start()
    with pytest.raises(RuntimeError, match="not started"):
        worker.parts.core.stats()
    await worker.stop(0.0)


async def test_stopping_lets_running_requests_finish(model: Path, oracle: Oracle) -> None:
    configs = [worker_config(model, name) for name in ("prefill-0", "decode-0")]
    async with running(*configs) as (prefill, decode), attached(decode) as gateway:
        prompts = [random_prompt(random.Random(n), 60) for n in range(3)]
        answers = [
            await gateway.submit(submission(prompt, PARAMS, peer_of(prefill))) for prompt in prompts
        ]
        await eventually(lambda: all(a.tokens for a in answers), "first tokens")

        await within(decode.stop(30.0), "the end of the worker")

        for prompt, answer in zip(prompts, answers, strict=True):
            assert tuple(answer.tokens) == oracle(prompt, PARAMS).token_ids
            assert not answer.lost
        await within(gateway.wait_ended(), "the end of the session")
        assert gateway.error is None  # it was ended, not broken
        await idle(prefill)


async def test_stopping_at_once_cuts_requests_off_and_frees_the_other_worker(model: Path) -> None:
    configs = [worker_config(model, name) for name in ("prefill-0", "decode-0")]
    async with running(*configs) as (prefill, decode), attached(decode) as gateway:
        params = replace(PARAMS, max_tokens=180)
        requests = [
            submission(random_prompt(random.Random(n), 60), params, peer_of(prefill))
            for n in range(6)
        ]
        answers = [await gateway.submit(request) for request in requests]
        await eventually(lambda: answers[0].tokens, "a first token")

        await within(decode.stop(0.0), "the end of the worker")

        await within(gateway.wait_ended(), "the end of the session")
        assert all(answer.lost or answer.error for answer in answers)
        await idle(prefill)


async def test_a_prefill_worker_that_stops_costs_its_peers_no_request(
    model: Path, oracle: Oracle
) -> None:
    configs = [worker_config(model, name) for name in ("prefill-0", "decode-0")]
    async with running(*configs) as (prefill, decode), attached(decode) as gateway:
        prompts = [random_prompt(random.Random(n), 100) for n in range(8)]
        answers = [
            await gateway.submit(submission(prompt, PARAMS, peer_of(prefill))) for prompt in prompts
        ]
        await eventually(lambda: len(prefill.parts.sender) > 2, "hand-offs")
        await within(prefill.stop(0.0), "the end of the worker")
        for prompt, answer in zip(prompts, answers, strict=True):
            await within(answer.done.wait(), "the end of a request")
            assert tuple(answer.tokens) == oracle(prompt, PARAMS).token_ids
        await idle(decode)


async def test_draining_by_call(model: Path) -> None:
    async with running(worker_config(model, "mixed-0")) as (worker,), attached(worker) as gateway:
        channel = open_channel(worker.description.address)
        stub = rpc.WorkerStub(channel)
        running_one = await gateway.submit(submission([5, 6, 7], PARAMS))
        await eventually(lambda: running_one.tokens, "a token")

        drained = await within(
            stub.Drain(pb.DrainRequest(timeout_ms=20_000), metadata=call_metadata(TOKEN)),
            "the end of the drain",
        )

        assert drained.aborted == 0
        await within(running_one.done.wait(), "the last tokens")
        assert len(running_one.tokens) == 20
        refused = await gateway.complete(submission([5, 6, 7], PARAMS))
        assert refused.error is not None
        assert refused.error.code == "service_unavailable"
        assert gateway.stats.draining
        await channel.close()


async def test_nobody_answers_after_the_end(model: Path) -> None:
    async with running(worker_config(model, "mixed-0")) as (worker,):
        address = worker.description.address
    channel = open_channel(address)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await rpc.WorkerStub(channel).Describe(
            pb.DescribeRequest(), metadata=call_metadata(TOKEN), timeout=10
        )
    await channel.close()
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def _life(model: Path) -> None:
    """Two workers that hand over to each other, some of it cut off."""
    configs = [worker_config(model, name) for name in ("mixed-0", "mixed-1")]
    async with (
        running(*configs) as (first, second),
        attached(first) as to_first,
        attached(second) as to_second,
    ):
        rng = random.Random(3)
        for gateway, other in ((to_first, second), (to_second, first)):
            requests = [
                submission(random_prompt(rng, 50), PARAMS, peer_of(other)) for _ in range(4)
            ]
            answers = [await gateway.submit(request) for request in requests]
            await gateway.abort(requests[0])
            for answer in answers[1:]:
                await within(answer.done.wait(), "the end of a request")


async def _settled(limit: Resources) -> Resources:
    """What the process holds when nothing of the past holds on any more, or still does late."""
    deadline = asyncio.get_running_loop().time() + 15
    while True:
        gc.collect()
        now = resources()
        over = now.fds > limit.fds or now.threads > limit.threads or now.sockets > limit.sockets
        if not over or asyncio.get_running_loop().time() > deadline:
            return now
        await asyncio.sleep(0.2)


async def test_a_life_leaves_no_descriptor_thread_or_socket(model: Path) -> None:
    """A leak grows with every life; what libraries keep (thread pools) stops growing."""
    held = resources()
    for _ in range(5):
        await _life(model)
        before, held = held, await _settled(held)
        if held.fds <= before.fds and held.threads <= before.threads:
            break
    assert held.fds <= before.fds
    assert held.threads <= before.threads
    assert held.sockets <= before.sockets
    assert not [each for each in threading.enumerate() if each.name.startswith("twinflow")]
