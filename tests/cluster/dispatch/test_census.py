"""Which workers may serve together (row C14), and what a gateway learns from them."""

from typing import Any

import pytest
from tests.support.fake_worker import TOKEN, FakeWorker, running

from twinflow.cluster.dispatch.address import WorkerAddress
from twinflow.cluster.dispatch.census import Census, take_census
from twinflow.protos.errors import ConfigError, Unavailable


async def test_what_equal_workers_have_in_common() -> None:
    workers = [
        FakeWorker("prefill-0", "prefill", max_model_len=128),
        FakeWorker("decode-0", "decode", max_model_len=64, epoch=5, num_blocks=7, max_num_seqs=3),
    ]
    async with running(*workers) as addresses:
        census = await take_census(addresses, TOKEN)
    shortest = workers[1].description
    assert census == Census(64, vocab_size=997, block_size=4, dtype="float32", reference=shortest)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"model_fingerprint": "weights-bfloat16"},
            "have different weights, dtypes or CPU",
        ),
        ({"kv_layout": "other"}, "lay KV blocks out differently"),
        ({"block_size": 8}, "have different block sizes"),
        ({"vocab_size": 998}, "have different vocabularies"),
        ({"protocol_version": 99}, "speak different versions of the worker protocol"),
    ],
)
async def test_workers_that_differ_are_refused(changes: dict[str, Any], problem: str) -> None:
    workers = [
        FakeWorker("prefill-0", "prefill"),
        FakeWorker("decode-0", "decode"),
        FakeWorker("decode-1", "decode", **changes),
    ]
    async with running(*workers) as addresses:
        with pytest.raises(ConfigError, match=f"workers prefill-0 and decode-1 {problem}"):
            await take_census(addresses, TOKEN)


async def test_workers_of_another_release() -> None:
    async with running(FakeWorker("mixed-0", protocol_version=99)) as addresses:
        with pytest.raises(ConfigError, match=r"mixed-0 speaks version 99 .* one release"):
            await take_census(addresses, TOKEN)


async def test_a_worker_that_does_not_answer() -> None:
    async with running(FakeWorker("mixed-0")) as addresses:
        addresses.append(WorkerAddress("mixed-1", "127.0.0.1:1"))
        with pytest.raises(Unavailable, match=r"mixed-1 at 127\.0\.0\.1:1 does not answer"):
            await take_census(addresses, TOKEN)


async def test_without_the_secret() -> None:
    async with running(FakeWorker("mixed-0")) as addresses:
        with pytest.raises(Unavailable, match="wrong or missing deployment token"):
            await take_census(addresses, "guessed")


async def test_nobody() -> None:
    with pytest.raises(ConfigError, match="at least one worker"):
        await take_census([], TOKEN)
