"""Ranks of a worker in processes of their own, as a launcher would start them.

`python -m tests.support.rank_workers` reads the configuration of a rank as one line and serves it
until standard input ends. It writes `ready ADDRESS`, and last `ended` or `lost REASON` or
`failed REASON`. A follower answers orders of kind `kv` with the bytes of its KV cache.
"""

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from tests.support.checkpoints import small_config, write_checkpoint
from tests.support.child_processes import ChildProcess
from tests.support.workers import worker_config

from twinflow.protos.errors import RankLost, TwinflowError
from twinflow.workers.config import WorkerConfig
from twinflow.workers.ranks.address import new_address
from twinflow.workers.ranks.server import FollowerServer
from twinflow.workers.server import WorkerServer

KV_ORDER = "kv"

# Eight heads and two KV heads, which 1, 2 and 4 ranks can share.
RANKED = small_config(num_heads=8, num_kv_heads=2, head_dim=8, max_position=8192)


def write_ranked_checkpoint(directory: Path) -> Path:
    """The model of `RANKED`."""
    return write_checkpoint(directory, RANKED)


def rank_configs(model: Path, size: int, **changes: Any) -> list[WorkerConfig]:
    """The configurations of the ranks of one worker."""
    leader = worker_config(
        model,
        "mixed-0",
        tensor_parallel_size=size,
        leader_address=new_address("mixed-0"),
        **changes,
    )
    return [msgspec.structs.replace(leader, rank=rank) for rank in range(size)]


class RankProcess(ChildProcess):
    """Starts a rank and hears from it."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__("tests.support.rank_workers", answers=("ready", "ended", "lost", "failed"))
        self.tell(config.encode().decode())


@contextmanager
def processes(*configs: WorkerConfig) -> Iterator[list[RankProcess]]:
    """Started ranks, none of which outlives the context."""
    ranks = [RankProcess(config) for config in configs]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.close()


def _main() -> int:
    config = WorkerConfig.decode(sys.stdin.readline().encode())
    return asyncio.run(_lead(config) if config.rank == 0 else _follow(config))


async def _lead(config: WorkerConfig) -> int:
    server = WorkerServer(config)
    try:
        _say(f"ready {await server.start()}")
    except TwinflowError as error:
        _say(f"failed {error}")
        await server.stop(0.0)
        return 2
    told = _told_to_stop()
    while not told.is_set() and server.parts.core.state.death is None:
        await asyncio.sleep(0.02)
    death = server.parts.core.state.death
    await server.stop(0.0)
    _say("ended" if death is None else f"lost {death}")
    return 0 if death is None else 1


async def _follow(config: WorkerConfig) -> int:
    server = FollowerServer(config)
    try:
        await server.start()
    except TwinflowError as error:
        _say(f"failed {error}")
        return 2
    built = server.parts.built
    cache, follower = built.runner.kv_cache, built.follower

    def dump(_body: bytes) -> None:
        follower.report(KV_ORDER, cache.data.numpy().tobytes())

    follower.on_order(KV_ORDER, dump)
    _say("ready")
    try:
        await server.wait_ended()
    except RankLost as error:
        _say(f"lost {error}")
        await server.stop(0.0)
        return 1
    await server.stop(0.0)
    _say("ended")
    return 0


def _told_to_stop() -> threading.Event:
    told = threading.Event()

    def read() -> None:
        sys.stdin.read()
        told.set()

    threading.Thread(target=read, daemon=True).start()
    return told


def _say(text: str) -> None:
    sys.stdout.write(text.replace("\n", " ") + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(_main())
