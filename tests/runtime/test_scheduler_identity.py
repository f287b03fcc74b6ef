"""The same tokens under every scheduler: models, prefix hits, preemptions, aborts.

Plain chunked serving of one request at a time is what everything is compared with.
"""

from dataclasses import replace
from functools import cache

import pytest
from tests.support.model_engines import ModelEngine
from tests.support.request_mixes import Ask, MixShape, random_asks
from tests.support.runners import make_model
from tests.support.schedulers import LinearTimes
from tests.support.tiny_models import tiny_config

from twinflow.runtime.config import EngineConfig
from twinflow.runtime.models.base import Model
from twinflow.runtime.models.config import ModelConfig, MoEConfig
from twinflow.runtime.request import Request
from twinflow.runtime.sampling_params import SamplingParams

pytestmark = pytest.mark.slow

CONFIGS: dict[str, ModelConfig] = {
    "gqa": tiny_config(num_layers=5),
    "moe": tiny_config(
        "Qwen3MoeForCausalLM",
        num_layers=4,
        moe=MoEConfig(layers=(0, 2, 3), num_experts=6, experts_per_token=3, expert_size=28),
    ),
    "mla": tiny_config("DeepseekV2ForCausalLM"),
}
SHAPE = MixShape(vocab_size=131, longest_prompt=70, most_tokens=36)
ASKS = random_asks(14, SHAPE, seed=11)
TIMES = LinearTimes(step=0.0, layer=0.0, row=0.1)


@cache
def model(name: str) -> Model:
    return make_model(CONFIGS[name])


def engine_config(**changes: object) -> EngineConfig:
    settings: dict[str, object] = {
        "max_model_len": 128, "num_blocks": 200, "max_num_batched_tokens": 64, "max_num_seqs": 8,
    }  # fmt: skip
    return EngineConfig(**(settings | changes))  # type: ignore[arg-type]


@cache
def expected(name: str) -> dict[int, list[int]]:
    """Each request alone, without a prefix cache."""
    config = engine_config(max_num_seqs=1, enable_prefix_caching=False, max_num_batched_tokens=128)
    return ModelEngine.build(model(name), config).play(ASKS, seed=0)


POLICIES: dict[str, dict[str, object]] = {
    "chunked": {"scheduler": "chunked"},
    "chunked, deadlines": {"scheduler": "chunked", "tbt_objective": 8.0},
    "chunked, shortest first": {"scheduler": "chunked", "prefill_order": "spf"},
    "laps": {"scheduler": "laps"},
    "layered": {"scheduler": "layered", "tbt_objective": 8.0},
    "layered, layer by layer": {"scheduler": "layered", "tbt_objective": 0.1},
    "layered, shortest first": {
        "scheduler": "layered", "tbt_objective": 12.0, "prefill_order": "spf",
    },
    "layered, past-future": {
        "scheduler": "layered", "tbt_objective": 8.0, "admission": "past-future",
    },
}  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_do_not_depend_on_the_policy(name: str, policy: dict[str, object]) -> None:
    made = ModelEngine.build(model(name), engine_config(**policy), TIMES)
    assert made.play(ASKS, seed=1) == expected(name)
    assert made.engine.blocks.counters.hits > 0
    assert (made.waves > 0) == (policy["scheduler"] == "layered")


@pytest.mark.parametrize("scheduler", ["chunked", "layered"])
@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_survive_preemptions_and_aborts(name: str, scheduler: str) -> None:
    config = engine_config(scheduler=scheduler, tbt_objective=3.0, num_blocks=35, block_size=4)
    preemptions = 0
    for seed in range(2):
        made = ModelEngine.build(model(name), config, TIMES)
        found = made.play(ASKS, seed=seed, abort=0.02)
        assert found == {number: expected(name)[number] for number in found}
        assert len(found) >= len(ASKS) // 2
        preemptions += made.engine.counters.preemptions
    assert preemptions > 0


def test_the_papers_groups_beside_decoding() -> None:
    """Without step times: one group for 512 tokens of a wave."""
    config = replace(CONFIGS["moe"], max_position=2048)
    large = make_model(config)
    asks = [Ask((7, 8), SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))]
    for length in (600, 1300, 40, 700):
        prompt = tuple((length * 7 + index * 31) % 128 + 3 for index in range(length))
        asks.append(Ask(prompt, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)))
    found = []
    for scheduler, budget in (("chunked", 128), ("layered", 1400)):
        settings = engine_config(
            scheduler=scheduler, max_num_batched_tokens=budget, max_model_len=1500
        )
        made = ModelEngine.build(large, settings)
        found.append(made.play(asks, seed=0))
    assert found[0] == found[1]
    assert made.waves >= 2


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_an_abort_at_any_group_leaves_nothing(groups: int) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    config = engine_config(scheduler="layered", tbt_objective=0.1)
    made = ModelEngine.build(model("gqa"), config, TIMES)
    engine, prompt = made.engine, tuple(range(3, 43))
    engine.add_request(Request(request_id="driver", prompt_token_ids=(7, 8), params=greedy))
    engine.step()
    engine.add_request(Request(request_id="long", prompt_token_ids=prompt, params=greedy))
    for _ in range(groups):
        engine.step()
    assert made.runner.num_unfinished == 1
    engine.abort("long")
    assert made.runner.num_unfinished == 0
    engine.check_integrity()
    found = made.play([Ask(prompt, greedy)], seed=0)
    alone = ModelEngine.build(model("gqa"), engine_config()).play([Ask(prompt, greedy)], seed=0)
    assert found[0] == alone[0]


def test_layered_prefill_loads_fewer_experts() -> None:
    """What it is for: a long prompt passes each layer's experts once, not once per chunk."""
    greedy = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
    asks = [Ask((7, 8, 9), greedy), Ask(tuple(range(3, 103)), greedy)]
    loaded, tokens = {}, {}
    for scheduler, budget in (("chunked", 16), ("layered", 128)):
        config = engine_config(
            scheduler=scheduler, max_num_batched_tokens=budget, tbt_objective=0.1
        )
        model = make_model(CONFIGS["moe"])
        made = ModelEngine.build(model, config, TIMES if scheduler == "layered" else None)
        tokens[scheduler] = made.play(asks, seed=4)
        experts = made.engine.counters.experts.values()
        loaded[scheduler] = sum(layer.loaded_bytes for layer in experts)
    assert tokens["layered"] == tokens["chunked"]
    assert 0 < loaded["layered"] < 0.8 * loaded["chunked"]
