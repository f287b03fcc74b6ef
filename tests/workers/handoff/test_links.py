"""Which links a worker makes."""

import random
from pathlib import Path

import pytest
import torch
from tests.support.certificates import Authority
from tests.support.workers import (
    Oracle,
    attached,
    idle,
    peer_of,
    random_prompt,
    running,
    submission,
    worker_config,
)

from twinflow.parallel.links.config import LinkPeer
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.workers.handoff.links import PeerLinks
from twinflow.workers.mutual_tls import MutualTls

PARAMS = SamplingParams(temperature=0, max_tokens=4, seed=0, ignore_eos=True)


@pytest.mark.parametrize(
    ("device", "backend"), [("cpu", "gloo"), ("cuda:0", "nccl"), ("cuda:1", "nccl")]
)
async def test_links_are_made_for_the_device_of_the_blocks(device: str, backend: str) -> None:
    links = PeerLinks(worker_config(Path("nowhere"), "decode-0"), torch.device(device))
    config = links._link_config(LinkPeer("prefill-0", 1), "link", 1)
    assert (config.backend, config.device) == (backend, device)
    await links.close()


async def test_workers_on_different_kinds_of_devices_hand_nothing_over(
    model: Path, oracle: Oracle
) -> None:
    """They say so when they meet, and neither waits for the other."""
    configs = [worker_config(model, name) for name in ("prefill-0", "decode-0")]
    async with running(*configs) as (prefill, decode), attached(decode) as gateway:
        decode.parts.links._device = torch.device("cuda:0")
        prompt = random_prompt(random.Random(1), 40)
        answer = await gateway.complete(submission(prompt, PARAMS, peer_of(prefill)))
        assert tuple(answer.tokens) == oracle(prompt, PARAMS).token_ids
        assert decode.parts.core.state.handoffs.failed == 1
        await idle(prefill, decode)


async def test_hand_offs_go_on_with_renewed_certificates(
    model: Path, oracle: Oracle, tmp_path: Path
) -> None:
    """A renewal between two requests takes a new channel, and a new link, to the same peer."""
    directory = Authority().write(tmp_path / "tls")
    configs = [worker_config(model, name, tls=directory) for name in ("prefill-0", "decode-0")]
    tls = MutualTls(directory)
    async with running(*configs) as (prefill, decode), attached(decode, tls=tls) as gateway:
        for number in range(1, 4):
            prompt = random_prompt(random.Random(number), 40)
            answer = await gateway.complete(submission(prompt, PARAMS, peer_of(prefill)))
            assert tuple(answer.tokens) == oracle(prompt, PARAMS).token_ids
            assert decode.parts.core.state.handoffs.completed == number
            Authority().write(directory)
        await idle(prefill, decode)
