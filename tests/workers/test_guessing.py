"""Tokens stay what they are however they are guessed, wherever prompts come from, on any ranks."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.checkpoints import small_config, write_checkpoint
from tests.support.covering import Combination
from tests.support.drafting_teams import drafting_team
from tests.support.engines import Collected
from tests.support.rank_pools import all_idle, pool_configs, ranked
from tests.support.ways_to_guess import name_of, speculation_of, ways_to_guess
from tests.support.workers import attached, peer_of, submission

from twinflow.protos.errors import ConfigError
from twinflow.runtime.engine import Engine
from twinflow.runtime.request import Request
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.speculative.account import SpeculationAccount
from twinflow.runtime.speculative.config import SpeculativeConfig

pytestmark = pytest.mark.slow

SETTINGS = {"num_kv_blocks": 120, "max_model_len": 120, "max_num_batched_tokens": 64}
# Between the first and the last layer a group of five.
MODEL = small_config(num_layers=7, num_heads=8, num_kv_heads=2, head_dim=8)
GREEDY = SamplingParams(temperature=0, seed=0, max_tokens=10, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.8, seed=11, max_tokens=10, ignore_eos=True)
RNG = random.Random(4)
ASKS = {
    f"r{number}": (
        [RNG.randrange(3, 300) for _ in range(RNG.randrange(1, 40))],
        SEEDED if number % 2 else GREEDY,
    )
    for number in range(8)
}
# Still decodes when KV of a drafter has come.
LONG = "long"
ASKS[LONG] = ([RNG.randrange(3, 300) for _ in range(20)], replace(SEEDED, max_tokens=70))
WAYS = ways_to_guess()
HERE = [way for way in WAYS if way["arrives"] == "here"]
FROM_ELSEWHERE = [way for way in WAYS if way["arrives"] != "here"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), MODEL)


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, list[int]]:
    """What one rank generates without proposals, one request at a time."""
    with drafting_team(model, 1, None, max_num_seqs=1, **SETTINGS) as engine:
        return generate(engine, list(ASKS))


def asked(way: Combination) -> list[str]:
    """The requests of a way; a few are enough where they are served one at a time."""
    names = list(ASKS)[: 8 if way["batch"] == 8 else 3]
    return [*names, LONG] if way["arrives"] == "transfer" else names


def generate(engine: Engine, names: Sequence[str]) -> dict[str, list[int]]:
    """Tokens of some requests, of which some come while others run."""
    collected, coming = Collected(), [(name, ASKS[name]) for name in names]
    for step in range(400):
        if step % 3 == 0 and coming:
            name, (prompt, params) = coming.pop(0)
            engine.add_request(Request(request_id=name, prompt_token_ids=prompt, params=params))
        engine.step()
        collected.take(engine)
        engine.check_integrity()
        if not coming and not engine.runnable:
            assert collected.failures == {}
            return collected.tokens
    raise AssertionError("the engine does not come to an end")


@pytest.mark.parametrize("way", HERE, ids=name_of)
def test_no_way_to_guess_changes_a_token(
    model: Path, expected: dict[str, list[int]], way: Combination
) -> None:
    config = speculation_of(way, model)
    settings = SETTINGS | {"max_num_seqs": way["batch"], "lanes": way["lanes"], "threads": 2}
    with drafting_team(model, int(str(way["ranks"])), config, **settings) as engine:
        assert (engine.lane_figures is not None) == (way["lanes"] == "cores")
        assert generate(engine, asked(way)) == {name: expected[name] for name in asked(way)}
        account = engine.counters.speculation
        engine.close()
    check(account, way)


@pytest.mark.asyncio
@pytest.mark.parametrize("way", FROM_ELSEWHERE, ids=name_of)
async def test_no_way_to_guess_changes_a_token_of_prompts_from_elsewhere(
    model: Path, expected: dict[str, list[int]], way: Combination
) -> None:
    config, ranks = speculation_of(way, model), int(str(way["ranks"]))
    settings = SETTINGS | {"max_num_seqs": way["batch"], "kv_parts": ranks}
    there = config if way["arrives"] == "transfer" else None
    async with (
        ranked(
            pool_configs(model, "prefill-0", 1, speculative_config=there, **settings),
            pool_configs(model, "decode-0", ranks, speculative_config=config, **settings),
        ) as (prefill, decode),
        attached(decode.leader) as gateway,
    ):
        peer = peer_of(prefill.leader)
        asks = [submission(*ASKS[name], peer) for name in asked(way)]
        answers = await asyncio.gather(*map(gateway.complete, asks))
        assert [answer.error for answer in answers] == [None] * len(answers)
        assert [answer.tokens for answer in answers] == [expected[name] for name in asked(way)]
        await all_idle(prefill, decode)
        parts = decode.leader.parts
        handoffs, count = parts.core.state.handoffs, len(asks)
        assert (handoffs.completed, handoffs.failed) == (count, 0)
        if parts.receiver.drafts is not None:
            arrivals, moved = parts.receiver.drafts.arrivals, way["arrives"] == "transfer"
            assert (arrivals.handed_over, arrivals.rebuilt) == ((count, 0) if moved else (0, count))
        account = await parts.core.loop.call(lambda engine: engine.counters.speculation)
    check(account, way)


def check(account: SpeculationAccount, way: Combination) -> None:
    """Something was guessed. A model that drafts for itself is right where it is exact."""
    if way["method"] in ("easyspec", "draft_model"):
        assert account.accepted_tokens > 0
    if way["method"] == "draft_model" or (way["method"], way["size"]) == ("easyspec", 1):
        assert sum(account.accepted_at) == account.accepted_tokens
        if way["tree"] is None:
            assert account.accepted_tokens == account.draft_tokens
    if way["tree"] is None and way["calibrate"] and way["method"] == "easyspec":
        assert account.accepted_at[0] == account.drafts


def easyspec(model: Path, ranks: int | None = None, **layer_parallel: object) -> SpeculativeConfig:
    return SpeculativeConfig.parse(
        {
            "method": "easyspec",
            "model": str(model),
            "num_speculative_tokens": 4,
            "adaptive": False,
            "draft_tensor_parallel_size": ranks,
            "layer_parallel": layer_parallel,
        }
    )


@pytest.mark.parametrize(
    ("size", "choice"),
    [
        (1, {"size": 3, "plan": "measured"}),
        (1, {"size": "auto"}),
        (2, {"size": 3, "plan": "measured"}),
        (2, {"size": "auto"}),
        (4, {"size": 2, "layout": "fused_tp", "ranks": 2}),
    ],
    ids=str,
)
def test_what_is_measured_at_start_changes_no_token(
    model: Path, expected: dict[str, list[int]], size: int, choice: dict[str, object]
) -> None:
    config = easyspec(model, **choice)  # type: ignore[arg-type]
    names = list(ASKS)[:3]
    with drafting_team(model, size, config, max_num_seqs=6, **SETTINGS) as engine:
        assert generate(engine, names) == {name: expected[name] for name in names}
        account = engine.counters.speculation
    assert account.accepted_at[0] == account.drafts > 0


def test_a_layout_that_the_ranks_cannot_have_is_refused_by_field(model: Path) -> None:
    settings = SETTINGS | {"max_num_seqs": 6}
    with (
        pytest.raises(ConfigError, match=r"draft_tensor_parallel_size is 2, .* the 1 ranks"),
        drafting_team(model, 1, easyspec(model, ranks=2), **settings),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"layer_parallel: of 7 layers, the first 4"),
        drafting_team(model, 1, easyspec(model, size=2, first=4, last=4), **settings),
    ):
        pass


@pytest.mark.parametrize(("layout", "shared"), [("fused_tp", True), ("owner", False)])
def test_ranks_that_draft_as_they_serve_have_weights_once(
    model: Path, layout: str, shared: bool
) -> None:
    config = easyspec(model, size=2, layout=layout)
    with drafting_team(model, 2, config, max_num_seqs=6, **SETTINGS) as engine:
        executor: Any = engine.executor
        drafting = executor._speculation._drafter._runner._runner
        assert drafting.shares_weights(executor._runner._runner) == shared
