"""The ranks of a worker as threads of one process, and runners without a model."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.ranks.base import RankGroup
from twinflow.protos.errors import RankLost
from twinflow.runtime.executor import LayersDone
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.model_runner import SequenceRows
from twinflow.workers.ranks.address import new_address
from twinflow.workers.ranks.config import TeamConfig
from twinflow.workers.ranks.follower import Follower, FollowerLoop
from twinflow.workers.ranks.leader import Leader
from twinflow.workers.ranks.together import LeaderRunner, Together

LAYOUT = "heads:0123"
TOKEN = "secret of the tests"
WORKER = "mixed-0"
PATIENCE_S = 30.0
NUM_LAYERS = 4
KV_LAYOUT = KVLayout.of_heads(
    num_layers=NUM_LAYERS, kv_heads=1, head_dim=4, block_size=4, dtype="float32"
)


def team_config(rank: int, size: int, address: str, **changes: Any) -> TeamConfig:
    """A rank on the CPU; `changes` are fields."""
    settings: dict[str, Any] = {"meet_s": 20.0, "load_s": 20.0, "epoch": 1, "token": TOKEN}
    return TeamConfig(
        worker_id=WORKER, rank=rank, size=size, address=address, **(settings | changes)
    )


class SumRunner:
    """Adds up all ranks' numbers for the tokens of a step; each call meets the others once.

    The logits of a row group are the sum over the ranks of (rank + 1) * (sum of its tokens).
    """

    def __init__(self, ranks: RankGroup) -> None:
        self.kv_cache = KVCache(KV_LAYOUT, 2, torch.device("cpu"))
        self.steps: list[list[SequenceRows]] = []
        self.forgotten: list[str] = []
        self.before: Callable[[], None] = lambda: None
        self._ranks = ranks

    def forward(
        self,
        rows: Sequence[SequenceRows],
        on_layers: LayersDone | None = None,
        layers_per_unit: int = 0,
    ) -> Tensor:
        """See `Runner.forward`."""
        self.before()
        self.steps.append(list(rows))
        sums = [[float(sum(group.token_ids))] for group in rows]
        total = self._ranks.all_reduce(torch.tensor(sums) * (self._ranks.rank + 1))
        unit = layers_per_unit or NUM_LAYERS
        for first in range(0, NUM_LAYERS, unit):
            if on_layers is not None:
                on_layers(first, min(first + unit, NUM_LAYERS))
        return total

    def take_traffic(self) -> tuple[LayerTraffic, ...]:
        """See `Runner.take_traffic`."""
        return ()

    def forget(self, sequence: str) -> bool:
        """See `Runner.forget`: of every sequence, something is kept."""
        self.forgotten.append(sequence)
        return True


@dataclass
class ThreadedTeam:
    """A connected worker; made by `team`."""

    leader: Leader
    followers: Sequence[Follower]
    runners: Sequence[SumRunner]
    loops: Sequence[FollowerLoop]
    ends: Sequence["Future[None]"]
    losses: "queue.SimpleQueue[RankLost]" = field(default_factory=queue.SimpleQueue)

    @property
    def runner(self) -> LeaderRunner:
        """What the engine of rank 0 would drive."""
        return LeaderRunner(self.runners[0], Together(self.leader))

    def outcomes(self) -> list[BaseException | None]:
        """How each follower's loop ended."""
        return [end.exception(PATIENCE_S) for end in self.ends]


@contextmanager
def meeting(size: int, **changes: Any) -> Iterator[tuple[Leader, list[Follower]]]:
    """Ranks that have met, closed at the end; `changes` are fields of every `TeamConfig`."""
    address = new_address(WORKER)

    def config(rank: int) -> TeamConfig:
        return team_config(rank, size, address, **changes)

    with ThreadPoolExecutor(size) as pool:
        joining = [
            pool.submit(Follower.join, config(rank), LAYOUT, 100 + rank) for rank in range(1, size)
        ]
        leader = Leader.meet(config(0), LAYOUT, 200)
        followers = [future.result(PATIENCE_S) for future in joining]
    try:
        yield leader, followers
    finally:
        end_in_order(leader, followers)


def end_in_order(leader: Leader, followers: Sequence[Follower]) -> None:
    """Close a leader, and its followers once they have heard of it."""
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(leader.close)
        for follower in followers:
            with suppress(RankLost):
                while follower.next() is not None:
                    pass
            follower.close()
        closing.result(PATIENCE_S)


@contextmanager
def team(size: int, **changes: Any) -> Iterator[ThreadedTeam]:
    """Ranks that have met and loaded a `SumRunner`; every follower's loop runs in a thread."""
    with meeting(size, **changes) as (leader, followers), ThreadPoolExecutor(size) as pool:
        runners = [SumRunner(leader.ranks), *(SumRunner(one.ranks) for one in followers)]
        loops = [
            FollowerLoop(runner, follower)
            for runner, follower in zip(runners[1:], followers, strict=True)
        ]
        for follower in followers:
            follower.ready("weights")
        leader.await_ready("weights")
        ends = [pool.submit(loop.run) for loop in loops]
        made = ThreadedTeam(leader, followers, runners, loops, ends)
        leader.on_lost(made.losses.put)
        try:
            yield made
        finally:
            leader.close()


def rank_threads() -> list[str]:
    """Names of the threads that watch ranks."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rank-")]
