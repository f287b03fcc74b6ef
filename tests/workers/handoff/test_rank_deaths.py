"""Ranks die or freeze in the middle of a hand-off: the other worker goes on, and keeps nothing."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.rank_pools import all_idle, pool_configs, ranked
from tests.support.rank_workers import RankProcess, processes, write_ranked_checkpoint
from tests.support.worker_proxy import between
from tests.support.workers import TOKEN, attached, random_prompt, submission, within

from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.runtime.llm import LLM
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.workers.config import WorkerConfig
from twinflow.workers.rpc import call_metadata, open_channel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PARAMS = SamplingParams(temperature=0, max_tokens=8, seed=0, ignore_eos=True)
SETTINGS: dict[str, Any] = {"kv_parts": 2, "kv_transfer_timeout_s": 5.0, "lease_s": 5.0}
Fault = Callable[[RankProcess], None]
FAULTS = pytest.mark.parametrize("fault", [RankProcess.kill, RankProcess.freeze])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ranked_checkpoint(tmp_path_factory.mktemp("ranked"))


@asynccontextmanager
async def in_processes(
    configs: Sequence[WorkerConfig],
) -> AsyncIterator[tuple[pb.DescribeResponse, list[RankProcess]]]:
    """A worker whose ranks are processes, and what it says of itself."""
    with processes(*configs) as ranks:
        ready = await asyncio.gather(*(asyncio.to_thread(rank.line) for rank in ranks))
        assert [line.split()[0] for line in ready] == ["ready"] * len(ranks), ready
        channel = open_channel(ready[0].split()[1])
        description = await rpc.WorkerStub(channel).Describe(
            pb.DescribeRequest(), metadata=call_metadata(TOKEN)
        )
        await channel.close()
        yield description, ranks


@FAULTS
async def test_a_sending_rank_that_dies_or_freezes_costs_the_prompt_and_nothing_else(
    model: Path, fault: Fault
) -> None:
    prompt = random_prompt(random.Random(1), 90)
    alone = LLM(model, dtype="float32", max_model_len=256, num_kv_blocks=64, block_size=8)
    expected = alone.generate([prompt], PARAMS, use_tqdm=False)[0].outputs[0].token_ids
    async with (
        in_processes(pool_configs(model, "prefill-0", 2, **SETTINGS)) as (sender, ranks),
        ranked(pool_configs(model, "decode-0", 2, **SETTINGS)) as (decode,),
        attached(decode.leader) as gateway,
    ):
        hit: list[bool] = []

        async def strike(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
            if message.HasField("ready") and not hit:
                hit.append(True)
                fault(ranks[1])
            yield message

        peer = pb.Peer(worker_id=sender.worker_id, epoch=sender.epoch, address=sender.address)
        peer.ranks.extend(sender.ranks)
        async with between(sender.ranks[1].address, to_receiver=strike) as address:
            peer.ranks[1].address = address
            answer = await gateway.complete(submission(prompt, PARAMS, peer))
        assert hit
        assert tuple(answer.tokens) == expected
        assert "recompute" in answer.phase_names
        assert decode.leader.parts.core.state.handoffs.failed == 1
        await all_idle(decode)


@FAULTS
async def test_a_receiving_rank_that_dies_or_freezes_leaves_the_sender_as_it_was(
    model: Path, fault: Fault
) -> None:
    prompt = random_prompt(random.Random(2), 90)
    async with (
        in_processes(pool_configs(model, "decode-0", 2, **SETTINGS)) as (receiver, ranks),
        ranked(pool_configs(model, "prefill-0", 2, **SETTINGS)) as (prefill,),
        attached(receiver.address) as gateway,
    ):
        hit: list[bool] = []

        async def strike(message: pb.TransferRequest) -> AsyncIterator[pb.TransferRequest]:
            if message.HasField("posted") and not hit:
                hit.append(True)
                fault(ranks[1])
            yield message

        me = prefill.leader.description
        peer = pb.Peer(worker_id=me.worker_id, epoch=me.epoch, address=me.address)
        peer.ranks.extend(me.ranks)
        async with between(me.ranks[1].address, to_sender=strike) as address:
            peer.ranks[1].address = address
            answer = await gateway.submit(submission(prompt, PARAMS, peer))
            await within(answer.done.wait(), "the end of the request")
            assert hit
            assert answer.lost or "rank 1 of decode-0" in str(answer.error)
            await all_idle(prefill)
        async with attached(prefill.leader) as to_prefill:
            assert (await to_prefill.complete(submission(prompt, PARAMS))).error is None
        await all_idle(prefill)
