"""Layered prefill on the ranks of a worker: the tokens are those of chunks, and nothing is left on
any rank, with prefix hits, aborts in the middle of waves, and preemptions."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import pytest
from tests.support.engines import Collected
from tests.support.model_engines import ModelEngine
from tests.support.rank_teams import PATIENCE_S, meeting
from tests.support.request_mixes import Ask, MixShape, random_asks
from tests.support.runners import make_model, make_runner
from tests.support.schedulers import LinearTimes
from tests.support.tiny_models import TINY_KINDS

from twinflow.runtime.config import EngineConfig
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.request import Request
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.workers.ranks.follower import Follower, FollowerLoop
from twinflow.workers.ranks.together import LeaderRunner, Together

pytestmark = pytest.mark.slow

ASKS = random_asks(10, MixShape(vocab_size=131, longest_prompt=70, most_tokens=20), seed=11)
# Every wave crosses one layer a step.
TIMES = LinearTimes(step=0.0, layer=0.0, row=0.1)
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def engine_config(**changes: object) -> EngineConfig:
    settings: dict[str, object] = {
        "max_model_len": 128, "num_blocks": 200, "block_size": 4, "max_num_batched_tokens": 64,
        "max_num_seqs": 8,
    }  # fmt: skip
    return EngineConfig(**(settings | changes))  # type: ignore[arg-type]


def layered(**changes: object) -> EngineConfig:
    return engine_config(scheduler="layered", tbt_objective=0.1, **changes)


@contextmanager
def two_ranks(name: str, config: EngineConfig) -> Iterator[tuple[ModelEngine, ModelRunner]]:
    """An engine over two ranks, and the runner of the second one."""

    def runner(rank: Follower) -> ModelRunner:
        model = make_model(TINY_KINDS[name], ranks=rank.ranks)
        sizes = (config.num_blocks, config.block_size, config.max_num_batched_tokens)
        return make_runner(model, *sizes)

    with meeting(2, silence_s=60.0) as (leader, (follower,)), ThreadPoolExecutor(1) as pool:
        loading = pool.submit(runner, follower)
        model = make_model(TINY_KINDS[name], ranks=leader.ranks)
        together = Together(leader)
        made = ModelEngine.build(
            model, config, TIMES, together=lambda own: LeaderRunner(own, together)
        )
        other = loading.result(PATIENCE_S)
        follower.ready("weights")
        leader.await_ready("weights")
        running = pool.submit(FollowerLoop(other, follower).run)
        try:
            yield made, other
        finally:
            leader.close()
        running.result(PATIENCE_S)


@cache
def expected(name: str) -> dict[int, list[int]]:
    """In chunks, without a prefix cache; that company changes nothing is shown elsewhere."""
    config = engine_config(enable_prefix_caching=False)
    with two_ranks(name, config) as (made, _):
        return made.play(ASKS, seed=0)


def leave_nothing(made: ModelEngine, other: ModelRunner) -> None:
    """Another rank hears with the next step of what it shall forget."""
    made.done = Collected()
    made.play([Ask((7, 8, 9), GREEDY)], seed=0)
    assert other.num_unfinished == 0


@pytest.mark.parametrize("name", TINY_KINDS)
def test_tokens_are_those_of_chunks(name: str) -> None:
    with two_ranks(name, layered()) as (made, other):
        assert made.play(ASKS, seed=1) == expected(name)
        assert made.engine.blocks.counters.hits > 0
        assert made.waves > 0
        leave_nothing(made, other)


@pytest.mark.parametrize("name", TINY_KINDS)
def test_tokens_survive_preemptions_and_aborts(name: str) -> None:
    with two_ranks(name, layered(num_blocks=35)) as (made, other):
        found = made.play(ASKS, seed=1, abort=0.02)
        assert found == {number: expected(name)[number] for number in found}
        assert len(found) >= len(ASKS) // 2
        assert made.engine.counters.preemptions > 0
        leave_nothing(made, other)


@pytest.mark.parametrize("groups", [1, 2])
def test_an_abort_between_two_groups(groups: int) -> None:
    prompt = tuple(range(3, 43))
    with two_ranks("gqa", layered()) as (made, other):
        engine = made.engine
        driver = Request(request_id="driver", prompt_token_ids=(7, 8), params=GREEDY)
        engine.add_request(driver)
        engine.step()
        engine.add_request(Request(request_id="long", prompt_token_ids=prompt, params=GREEDY))
        for _ in range(groups):
            engine.step()
        assert (made.runner.num_unfinished, other.num_unfinished) == (1, 1)
        engine.abort("long")
        assert made.runner.num_unfinished == 0
        engine.step()
        assert other.num_unfinished == 0
        again = made.play([Ask(prompt, GREEDY)], seed=0)
    with two_ranks("gqa", engine_config()) as (plain, _):
        assert plain.play([Ask(prompt, GREEDY)], seed=0) == again
