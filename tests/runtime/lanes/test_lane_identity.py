"""The same tokens on two lanes as on one: models, policies, prefix hits, layouts that change with
every step, preemptions, aborts.

Plain chunked serving of one request at a time is what everything is compared with.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from tests.support.kernels import native_library
from tests.support.lanes import CountedThreads, EveryLayout, OrderedLanes
from tests.support.model_engines import Divided, ModelEngine
from tests.support.request_mixes import MixShape, random_asks
from tests.support.runners import make_model
from tests.support.tiny_models import TINY_KINDS

from twinflow.parallel.partition.backends.base import Backend, Place
from twinflow.parallel.partition.backends.cores import CoreSets
from twinflow.parallel.partition.layout import Grid
from twinflow.protos.errors import ConfigError
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.kernels.native import NativeKernels
from twinflow.runtime.models.base import Model
from twinflow.runtime.speculative.drafters.base import Drafter
from twinflow.runtime.speculative.drafters.token_recycling import (
    RecyclingConfig,
    TokenRecyclingDrafter,
)

ASKS = random_asks(10, MixShape(vocab_size=131, longest_prompt=70, most_tokens=20), seed=11)
POLICIES = [(name, order) for name in ("chunked", "layered", "laps") for order in ("fcfs", "spf")]


@cache
def model(name: str, *, native: bool = False) -> Model:
    return make_model(TINY_KINDS[name], kernels=NativeKernels(native_library()) if native else None)


def engine_config(**changes: object) -> EngineConfig:
    settings: dict[str, object] = {
        "max_model_len": 128, "num_blocks": 200, "max_num_batched_tokens": 24, "max_num_seqs": 8,
    }  # fmt: skip
    return EngineConfig(**(settings | changes))  # type: ignore[arg-type]


@cache
def expected(name: str, *, native: bool = False) -> dict[int, list[int]]:
    """Each request alone, without a prefix cache."""
    config = engine_config(max_num_seqs=1, enable_prefix_caching=False, max_num_batched_tokens=128)
    return ModelEngine.build(model(name, native=native), config).play(ASKS, seed=0)


@contextmanager
def laned(
    name: str,
    config: EngineConfig,
    backend: Backend,
    drafter: Drafter | None = None,
    *,
    native: bool = False,
    ends: int | None = None,
) -> Iterator[ModelEngine]:
    """An engine on lanes whose steps end in an order drawn with the seed `ends`, or as they may."""
    assert backend.grid is not None
    divided = Divided(backend, EveryLayout(backend.grid), ends)
    served = model(name, native=native)
    made = ModelEngine.build(served, config, drafter=drafter, divided=divided)
    try:
        yield made
    finally:
        made.engine.close()


@pytest.mark.parametrize("policy", POLICIES, ids="-".join)
@pytest.mark.parametrize("name", TINY_KINDS)
def test_tokens_do_not_depend_on_lanes(name: str, policy: tuple[str, str]) -> None:
    scheduler, order = policy
    config = engine_config(scheduler=scheduler, prefill_order=order)
    backend = CountedThreads(Grid.of(4))
    with laned(name, config, backend, ends=1) as made:
        assert made.play(ASKS, seed=1) == expected(name)
        assert made.engine.blocks.counters.hits > 0
        figures, steps = made.engine.lane_figures, made.engine.counters.steps
        assert figures is not None
        assert figures.switches == steps - 1
        assert sum(figures.steps.values()) == steps
        assert isinstance(made.lanes, OrderedLanes)
        assert made.lanes.both > 0
    assert len({thread for _, _, thread in backend.moves}) == 2


@pytest.mark.parametrize("scheduler", ["chunked", "layered", "laps"])
@pytest.mark.parametrize("name", TINY_KINDS)
def test_tokens_survive_preemptions_and_aborts(name: str, scheduler: str) -> None:
    config = engine_config(scheduler=scheduler, num_blocks=36, block_size=4)
    with laned(name, config, CountedThreads(Grid.of(3)), ends=2) as made:
        check_hard_times(made, name, seed=2)


def check_hard_times(made: ModelEngine, name: str, seed: int) -> None:
    """Play with aborts in little memory: all of it happens, and no token changes."""
    found = made.play(ASKS, seed=seed, abort=0.03)
    assert found == {number: expected(name)[number] for number in found}
    assert len(found) >= len(ASKS) // 2
    assert made.aborted
    assert made.engine.counters.preemptions > 0
    assert made.engine.blocks.counters.hits > 0


@pytest.mark.parametrize("moves", [1, 9, 14])
@pytest.mark.parametrize("when", ["before a step", "after a step"])
@pytest.mark.parametrize("name", TINY_KINDS)
def test_a_backend_that_fails_costs_no_request_and_no_token(
    name: str, when: str, moves: int
) -> None:
    """Whichever lane's step it is, and whether the step is computed already."""
    backend = CountedThreads(Grid.of(3))

    def fail(*_: object) -> None:
        if len(backend.moves) >= moves:
            raise ConfigError("the driver refuses")

    if when == "before a step":
        backend.on_enter = fail
    else:
        backend.on_settle = fail
    with laned(name, engine_config(scheduler="layered"), backend) as made:
        assert made.play(ASKS, seed=1) == expected(name)
        figures = made.engine.lane_figures
        assert figures is not None
        assert (figures.backend, figures.layout) == ("none", None)
        assert figures.failure.endswith("any more: the driver refuses")
        assert sum(figures.steps.values()) < made.engine.counters.steps
        assert backend.closed
    assert len(backend.moves) <= moves + 1


@pytest.mark.parametrize("scheduler", ["chunked", "layered", "laps"])
@pytest.mark.parametrize("name", TINY_KINDS)
def test_tokens_on_core_sets(name: str, scheduler: str) -> None:
    """Real threads that really move, with prefix hits, preemptions and aborts."""
    config = engine_config(scheduler=scheduler, num_blocks=36, block_size=4)
    with laned(name, config, core_sets(), ends=1) as made:
        check_hard_times(made, name, seed=1)
    with ThreadPoolExecutor() as later:
        assert later.submit(torch.get_num_threads).result() == torch.get_num_threads()


@pytest.mark.parametrize("name", TINY_KINDS)
def test_tokens_on_core_sets_whose_steps_end_as_they_may(name: str) -> None:
    """Whatever else happens then depends on the machine."""
    config = engine_config(scheduler="layered", num_blocks=36, block_size=4)
    with laned(name, config, core_sets()) as made:
        found = made.play(ASKS, seed=1, abort=0.02)
    assert found == {number: expected(name)[number] for number in found}


def core_sets() -> CoreSets:
    """Up to four processor cores."""
    cores = tuple(sorted(os.sched_getaffinity(0)))[:4]
    if len(cores) < 2:
        pytest.skip("core sets need two processor cores")
    return CoreSets(Place("cpu", cores))


@pytest.mark.parametrize("name", TINY_KINDS)
def test_proposals_are_verified_on_the_lane_that_decodes(name: str) -> None:
    config = engine_config(num_speculative_tokens=4, max_num_batched_tokens=40)
    recycling = RecyclingConfig(vocab_size=TINY_KINDS[name].vocab_size, nodes=4)
    drafter = TokenRecyclingDrafter(recycling)
    with laned(name, config, CountedThreads(Grid.of(3)), drafter) as made:
        assert made.play(ASKS, seed=1) == expected(name)
        assert made.engine.counters.speculation.draft_tokens > 0


@pytest.mark.parametrize("name", TINY_KINDS)
def test_tokens_of_native_kernels_do_not_depend_on_lanes(name: str) -> None:
    with laned(name, engine_config(), CountedThreads(Grid.of(4)), native=True) as made:
        assert made.play(ASKS, seed=1) == expected(name, native=True)
