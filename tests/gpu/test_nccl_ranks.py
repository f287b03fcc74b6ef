"""Ranks on CUDA devices. NCCL refuses two ranks on one device, so two are needed."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.support.rank_groups import ranks_config, sum_in_order, uneven_parts

from twinflow.parallel.links.store import MemoryStore
from twinflow.parallel.ranks.distributed import DistributedRanks
from twinflow.protos.errors import RankLost

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def connect(size: int, sliced_from_bytes: int, deadline_s: float) -> list[DistributedRanks]:
    store = MemoryStore("ranks")

    def one(rank: int) -> DistributedRanks:
        settings = {"backend": "nccl", "device": f"cuda:{rank}", "deadline_s": deadline_s}
        config = ranks_config(rank, size, connect_s=60.0, **settings)
        return DistributedRanks.connect(config, store, sliced_from_bytes)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


@pytest.mark.parametrize("sliced_from_bytes", [0, 1 << 40])
def test_devices_give_the_bits_that_cpus_give(sliced_from_bytes: int) -> None:
    size = min(4, torch.cuda.device_count())
    group = connect(size, sliced_from_bytes, deadline_s=20.0)

    def reduce(ranks: DistributedRanks) -> tuple[torch.Tensor, torch.Tensor]:
        part = parts[ranks.rank].to(f"cuda:{ranks.rank}")
        gathered = ranks.all_gather(part)
        total = ranks.all_reduce(part)
        ranks.settle()
        return total.cpu(), gathered.cpu()

    with ThreadPoolExecutor(size) as pool:
        for dtype in (torch.float32, torch.bfloat16):
            parts = uneven_parts(size, 64, 96, dtype=dtype)
            for total, gathered in pool.map(reduce, group):
                assert torch.equal(total, sum_in_order(parts))
                assert torch.equal(gathered, torch.cat(parts, dim=1))
    for ranks in group:
        ranks.close()


def test_a_rank_that_does_not_come_is_found_when_the_step_settles() -> None:
    group = connect(2, 0, deadline_s=1.0)
    group[0].all_reduce(torch.ones(4, 4, device="cuda:0"))  # queued, and waits on the device
    with pytest.raises(RankLost, match="rank 0 of decode-0 lost another rank in the step"):
        group[0].settle()
    with pytest.raises(RankLost):
        group[0].all_reduce(torch.ones(4, 4, device="cuda:0"))
    for ranks in group:
        ranks.close()
