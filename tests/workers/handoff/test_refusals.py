"""Workers that do not mean the same hand no KV over: refused at once, and computed here."""

import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from tests.support.checkpoints import small_config, write_checkpoint
from tests.support.tiny_models import tiny_state_dict
from tests.support.workers import (
    TOKEN,
    Gateway,
    Oracle,
    attached,
    idle,
    peer_of,
    random_prompt,
    running,
    submission,
    within,
    worker_config,
)

from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.workers.rpc import call_metadata, open_channel
from twinflow.workers.server import WorkerServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARAMS = SamplingParams(temperature=0.7, max_tokens=6, seed=9, ignore_eos=True)
TIMEOUT_S = 1.0


@dataclass
class Crowd:
    """A decode worker and prefill workers that it cannot fetch from, but for the first."""

    decode: WorkerServer
    prefill: WorkerServer
    other_weights: WorkerServer
    other_blocks: WorkerServer
    other_secret: WorkerServer
    gateway: Gateway

    def strangers(self) -> dict[str, pb.Peer]:
        """Prefill workers that will not do, by what is wrong with them."""
        return {
            "other weights": peer_of(self.other_weights),
            "other block size": peer_of(self.other_blocks),
            "other secret": peer_of(self.other_secret),
            "an earlier life": peer_of(self.prefill, epoch=6),
            "a later life": peer_of(self.prefill, epoch=8, worker_id="prefill-9"),
            "nobody there": peer_of(self.prefill, worker_id="prefill-8", address="127.0.0.1:1"),
        }


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def crowd(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Crowd]:
    other = write_checkpoint(
        tmp_path_factory.mktemp("other"), state=tiny_state_dict(small_config(), seed=1)
    )
    configs = [
        worker_config(model, "decode-0", kv_transfer_timeout_s=TIMEOUT_S),
        worker_config(model, "prefill-0", kv_transfer_timeout_s=TIMEOUT_S, epoch=7),
        worker_config(other, "prefill-1"),
        worker_config(model, "prefill-2", block_size=16),
        worker_config(model, "prefill-3", token="another secret"),
    ]
    async with running(*configs) as workers, attached(workers[0]) as gateway:
        yield Crowd(workers[0], workers[1], workers[2], workers[3], workers[4], gateway)


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def ends_idle(crowd: Crowd) -> AsyncIterator[None]:
    """Nothing is left behind, and the worker that will do is still fetched from."""
    yield
    await idle(crowd.decode, crowd.prefill, crowd.other_weights, crowd.other_blocks)
    handoffs = crowd.decode.parts.core.state.handoffs
    before = handoffs.completed
    prompt = random_prompt(random.Random(), 20)
    await crowd.gateway.complete(submission(prompt, PARAMS, peer_of(crowd.prefill)))
    assert handoffs.completed == before + 1


@pytest.mark.parametrize(
    "stranger",
    [
        "other weights",
        "other block size",
        "other secret",
        "an earlier life",
        "a later life",
        "nobody there",
    ],
)
async def test_the_decode_worker_computes_the_prompt_itself(
    crowd: Crowd, oracle: Oracle, stranger: str
) -> None:
    handoffs = crowd.decode.parts.core.state.handoffs
    failed = handoffs.failed
    prompt = random_prompt(random.Random(stranger), 50)
    looked_up = crowd.decode.parts.core.stats().prefix_queries

    answer = await crowd.gateway.complete(submission(prompt, PARAMS, crowd.strangers()[stranger]))

    assert tuple(answer.tokens) == oracle(prompt, PARAMS).token_ids
    assert "recompute" in answer.phase_names
    assert handoffs.failed == failed + 1
    assert crowd.decode.parts.core.stats().prefix_queries == looked_up + 50


async def test_a_draining_prefill_worker_is_left_alone(
    crowd: Crowd, oracle: Oracle, model: Path
) -> None:
    async with running(worker_config(model, "prefill-7")) as (leaving,):
        leaving.parts.core.state.draining = True
        prompt = random_prompt(random.Random("drain"), 50)
        answer = await crowd.gateway.complete(submission(prompt, PARAMS, peer_of(leaving)))
        assert tuple(answer.tokens) == oracle(prompt, PARAMS).token_ids
        assert leaving.parts.core.stats().prompt_tokens == 0


async def test_prefill_workers_that_hold_shorter_sequences_are_not_insisted_on(
    crowd: Crowd, oracle: Oracle, model: Path
) -> None:
    async with running(worker_config(model, "prefill-6", max_model_len=64)) as (short,):
        prompt = random_prompt(random.Random("long"), 100)
        answer = await crowd.gateway.complete(submission(prompt, PARAMS, peer_of(short)))
        assert tuple(answer.tokens) == oracle(prompt, PARAMS).token_ids
        await idle(short)


def opening(crowd: Crowd, **changes: Any) -> pb.TransferOpen:
    """What a decode worker asks for; `changes` are fields of the message."""
    me = crowd.decode.description
    prompt = submission(random_prompt(random.Random(), 20), PARAMS)
    fields: dict[str, Any] = {
        "transfer_id": f"transfer of {prompt.request_id}",
        "submission": prompt,
        "receiver_id": "decode-raw",
        "receiver_epoch": 1,
        "sender_epoch": 7,
        "model_fingerprint": me.model_fingerprint,
        "kv_layout": me.kv_layout,
        "first_block": 0,
        "num_blocks": 3,
        "layers_per_unit": crowd.decode.parts.built.layers_per_unit,
        "link_id": f"link of {prompt.request_id}",
        "new_link": True,
        "parts": [part.name for part in crowd.decode.parts.built.layout.parts],
        "block_step": 1,
    }
    return pb.TransferOpen(**(fields | changes))


async def transfer(
    crowd: Crowd, *requests: pb.TransferRequest, leave: bool = True
) -> grpc.aio.AioRpcError:
    """Say something to the prefill worker as a decode worker would; returns how it ended."""
    channel = open_channel(crowd.prefill.description.address)
    call = rpc.WorkerStub(channel).Transfer(metadata=call_metadata(TOKEN))
    try:
        for request in requests:
            await call.write(request)
        if leave:
            await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await within(_read_all(call), "the end of the hand-off")
    finally:
        await channel.close()
    return ended.value


async def _read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


def _without_seed(message: pb.TransferOpen) -> None:
    message.submission.sampling.ClearField("seed")


def _empty(message: pb.TransferOpen) -> None:
    del message.submission.prompt_token_ids[:]


def _unknown_token(message: pb.TransferOpen) -> None:
    message.submission.prompt_token_ids[3] = 10_000


def _bad_parameter(message: pb.TransferOpen) -> None:
    message.submission.sampling.temperature = float("nan")


WRONG_OPENINGS: dict[str, tuple[Callable[[pb.TransferOpen], None], str]] = {
    "epoch": (lambda m: setattr(m, "sender_epoch", 8), "epoch 8"),
    "model": (lambda m: setattr(m, "model_fingerprint", "x"), "another model"),
    "layout": (lambda m: setattr(m, "kv_layout", "x"), "layout"),
    "unit": (lambda m: setattr(m, "layers_per_unit", 1), "layers per unit"),
    "too few blocks": (lambda m: setattr(m, "num_blocks", 2), "do not end"),
    "too many blocks": (lambda m: setattr(m, "num_blocks", 4), "do not end"),
    "no blocks": (lambda m: setattr(m, "num_blocks", 0), "no range"),
    "first block": (lambda m: setattr(m, "first_block", 1), "do not end"),
    "no id": (lambda m: setattr(m, "transfer_id", ""), "id"),
    "long id": (lambda m: setattr(m, "transfer_id", "x" * 200), "id"),
    "old link": (lambda m: setattr(m, "new_link", False), "not here any more"),
    "no link id": (lambda m: setattr(m, "link_id", ""), "link_id"),
    "no prompt": (_empty, "do not end"),
    "no seed": (_without_seed, "seed"),
    "parameter": (_bad_parameter, "temperature"),
}


@pytest.mark.parametrize("wrong", WRONG_OPENINGS)
async def test_openings_that_do_not_fit_are_refused(crowd: Crowd, wrong: str) -> None:
    message = opening(crowd)
    change, reason = WRONG_OPENINGS[wrong]
    change(message)
    error = await transfer(crowd, pb.TransferRequest(open=message), leave=False)
    assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)
    assert reason in (error.details() or "")


async def test_prompts_that_cannot_be_computed_are_told_and_then_forgotten(crowd: Crowd) -> None:
    """The decode worker hears of it as of any failure, and ends the conversation."""
    message = opening(crowd)
    _unknown_token(message)
    channel = open_channel(crowd.prefill.description.address)
    call = rpc.WorkerStub(channel).Transfer(metadata=call_metadata(TOKEN))
    await call.write(pb.TransferRequest(open=message))
    response = await within(call.read(), "the failure")
    assert response.prefilled.failure.code == "invalid_request"
    assert "vocabulary" in response.prefilled.failure.message
    call.cancel()
    await channel.close()


async def test_a_transfer_cannot_be_opened_twice(crowd: Crowd) -> None:
    first = opening(crowd)
    second = opening(crowd, transfer_id=first.transfer_id)
    channel = open_channel(crowd.prefill.description.address)
    call = rpc.WorkerStub(channel).Transfer(metadata=call_metadata(TOKEN))
    await call.write(pb.TransferRequest(open=first))
    await within(call.read(), "the first answer")

    error = await transfer(crowd, pb.TransferRequest(open=second))

    assert "under way already" in (error.details() or "")
    call.cancel()
    await channel.close()


async def test_two_transfers_cannot_share_a_link(crowd: Crowd) -> None:
    first = opening(crowd)
    channel = open_channel(crowd.prefill.description.address)
    call = rpc.WorkerStub(channel).Transfer(metadata=call_metadata(TOKEN))
    await call.write(pb.TransferRequest(open=first))
    await within(call.read(), "the first answer")

    second = opening(crowd, link_id=first.link_id)
    error = await transfer(crowd, pb.TransferRequest(open=second))

    assert "a transfer uses it" in (error.details() or "")
    call.cancel()
    await channel.close()


async def test_older_lives_of_a_decode_worker_are_refused(crowd: Crowd) -> None:
    names = {"receiver_id": "decode-old"}
    await transfer(crowd, pb.TransferRequest(open=opening(crowd, receiver_epoch=5, **names)))
    error = await transfer(
        crowd, pb.TransferRequest(open=opening(crowd, receiver_epoch=4, **names)), leave=False
    )
    assert "stale epoch" in (error.details() or "")


async def test_hand_offs_begin_with_an_opening(crowd: Crowd) -> None:
    posted = pb.TransferRequest(posted=pb.UnitPosted(unit=0))
    for requests in ([posted], [pb.TransferRequest()], []):
        error = await transfer(crowd, *requests)
        assert "begins with" in (error.details() or "")


async def test_a_decode_worker_that_says_nothing_is_not_waited_for(crowd: Crowd) -> None:
    error = await transfer(crowd, leave=False)
    assert "without a word" in (error.details() or "")


async def test_a_decode_worker_that_leaves_at_once_holds_nothing(crowd: Crowd) -> None:
    error = await transfer(crowd, pb.TransferRequest(open=opening(crowd)))
    assert "before it was done" in (error.details() or "")


async def test_a_decode_worker_that_never_opens_its_half_is_not_waited_for(crowd: Crowd) -> None:
    error = await transfer(crowd, pb.TransferRequest(open=opening(crowd)), leave=False)
    assert (error.details() or "").startswith("link_error: ")
    assert "decode-raw" in (error.details() or "")
