"""Measures the steps of a model that several ranks compute together.

This process is rank 0; the others are processes that it starts, which follow it as those of a
worker do. A step so costs what it costs in serving, with the frames to the other ranks and their
sums. What is measured holds for workers of as many ranks, and only on the whole of their devices:
ranks take one step at a time, so nothing divides them.
"""

import multiprocessing
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from twinflow.runtime.cost.dividers import use_threads
from twinflow.runtime.cost.measure import Measured, Progress, Subject, measure_subject
from twinflow.runtime.engine_plan import EngineOptions
from twinflow.workers.ranks.address import new_address
from twinflow.workers.ranks.build import build_follower, load_leader
from twinflow.workers.ranks.config import TeamConfig
from twinflow.workers.ranks.together import LeaderRunner, Together

_NAME = "profile"
_END_S = 30.0


def measure_ranks(
    options: EngineOptions,
    ranks: int,
    *,
    threads: int,
    seconds: float,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Load a model on ranks of this machine and measure its steps.

    Args:
        options: of the engine; the KV memory is that of each rank. With `cuda`, rank N has the
            N-th GPU.
        ranks: that compute the model together, at least 2.
        threads: with which each rank computes on a CPU; 0 elsewhere.
        seconds: see `measure`.
        progress: told how far it is.
        clock: seconds.

    Raises:
        CheckpointError: the model cannot be served.
        ConfigError: an option does not fit the model or the machine, or the model cannot be cut
            for so many ranks.
        RankLost: a rank did not start, or ended.
        EngineError: a step failed.
    """
    address, token = new_address(_NAME), secrets.token_hex()

    def team(rank: int) -> TeamConfig:
        return TeamConfig(
            worker_id=_NAME,
            epoch=1,
            rank=rank,
            size=ranks,
            address=address,
            token=token,
            device=_device(options, rank),
        )

    with _followers(options, [team(rank) for rank in range(1, ranks)], threads):
        use_threads(threads)
        loaded = load_leader(replace(options, device=_device(options, 0)), team(0))
        try:
            together = LeaderRunner(loaded.runner, Together(loaded.leader))
            subject = Subject(loaded.plan, together, loaded.runner.row_tile, ranks)
            measured = measure_subject(subject, seconds=seconds, progress=progress, clock=clock)
            return replace(measured, obstacle="ranks compute one step at a time")
        finally:
            loaded.leader.close()


@contextmanager
def _followers(options: EngineOptions, teams: list[TeamConfig], threads: int) -> Iterator[None]:
    """A process for each rank but the first; all have ended afterwards."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_follow, args=(options, team, threads), daemon=True)
        for team in teams
    ]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.join(_END_S)
            process.kill()


def _follow(options: EngineOptions, config: TeamConfig, threads: int) -> None:
    """The life of a rank."""
    use_threads(threads)
    built = build_follower(replace(options, device=config.device), config)
    built.ready(address="")
    built.loop.run()


def _device(options: EngineOptions, rank: int) -> str:
    return "cpu" if options.device == "cpu" else f"cuda:{rank}"
