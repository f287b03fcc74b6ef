"""Links between two CUDA devices. NCCL refuses two ranks on one device, so two are needed."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import pytest
import torch
from tests.support.link_pairs import config_of

from twinflow.parallel.links.link import Link
from twinflow.parallel.links.store import MemoryStore
from twinflow.protos.errors import LinkError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def open_cuda_pair() -> tuple[Link, Link]:
    """Rank 0 on the first device, rank 1 on the second."""
    store = MemoryStore("link-1")

    def open_end(rank: Literal[0, 1]) -> Link:
        config = replace(config_of(rank, deadline_s=60.0), backend="nccl", device=f"cuda:{rank}")
        return Link.open(config, store)

    with ThreadPoolExecutor(1) as other:
        receiver = other.submit(open_end, 1)
        return open_end(0), receiver.result()


def test_messages_arrive_between_devices() -> None:
    sender, receiver = open_cuda_pair()
    sent = [torch.full((1 << 18,), float(value), device="cuda:0") for value in range(3)]
    received = [torch.full((1 << 18,), -1.0, device="cuda:1") for _ in range(3)]
    with ThreadPoolExecutor(1) as other:
        for _ in range(3):
            pending = receiver.post_receive(received, 0)
            sending = other.submit(sender.send, sent, 0)
            pending.wait()
            sending.result()
    assert [tensor.mean().item() for tensor in received] == [0.0, 1.0, 2.0]
    sender.close()
    receiver.close()


def test_a_receive_that_times_out_breaks_the_link_and_frees_its_memory() -> None:
    sender, receiver = open_cuda_pair()
    received = torch.full((1 << 18,), -1.0, device="cuda:1")
    with pytest.raises(LinkError, match=r"receive failed: not done within 0\.5 s"):
        receiver.post_receive([received], 0).wait(0.5)
    receiver.close()
    received.fill_(7.0)
    with pytest.raises(LinkError):
        sender.send([torch.ones(1 << 18, device="cuda:0")], 0, 1.0)
    sender.close()
    assert received.eq(7.0).all().item()
