"""Workers whose ranks are threads of one process and draft together, connected over gloo."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.rank_workers import rank_configs

from twinflow.runtime.build import build_engine
from twinflow.runtime.engine import Engine
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.workers.config import WorkerConfig
from twinflow.workers.options import engine_options
from twinflow.workers.ranks.build import build_follower, build_leader
from twinflow.workers.ranks.config import TeamConfig

PATIENCE_S = 60.0


@contextmanager
def drafting_team(
    model: Path, size: int, speculation: SpeculativeConfig | None, **changes: Any
) -> Iterator[Engine]:
    """The engine of a worker; `changes` are fields of `WorkerConfig`."""
    changes |= {"speculative_config": speculation}
    if size == 1:
        (config,) = rank_configs(model, 1, **changes)
        yield build_engine(engine_options(config), clock=time.monotonic).engine
        return
    configs = rank_configs(model, size, **changes)
    with ThreadPoolExecutor(size) as pool:
        ends = [pool.submit(_follow, config) for config in configs[1:]]
        leader = build_leader(
            engine_options(configs[0]), TeamConfig.of(configs[0]), clock=time.monotonic
        )
        try:
            yield leader.built.engine
        finally:
            leader.leader.close()
        _await(ends)


def _follow(config: WorkerConfig) -> None:
    built = build_follower(engine_options(config), TeamConfig.of(config))
    built.ready("")
    built.loop.run()


def _await(ends: Sequence["Future[None]"]) -> None:
    for end in ends:
        end.result(PATIENCE_S)
