"""Offline generation with latent attention: the bare model's tokens, whatever surrounds a prompt.

Prompt and generated tokens take two forms of it, which round differently; so this is also about
which token takes which, and about whose KV may be found in the prefix cache.
"""

from pathlib import Path

import pytest
from tests.support.checkpoints import small_config, write_checkpoint
from tests.support.runners import FedSequence, feed, make_model, make_runner

from twinflow import LLM, RequestOutput, SamplingParams
from twinflow.protos.errors import ConfigError
from twinflow.runtime.latent_setup import LatentOptions
from twinflow.runtime.models.config import ModelConfig

PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=2)
TEXTS = ["hello world", "12 hello", "x", "The capital of France is", "hello world 12 hello"]


@pytest.fixture(scope="module", params=["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return small_config(request.param, num_heads=8)


@pytest.fixture(scope="module")
def model(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), config)


def load(model: Path, **options: object) -> LLM:
    """A small engine."""
    return LLM(model, **{"dtype": "float32", "num_kv_blocks": 65, "block_size": 8, **options})


@pytest.fixture(scope="module")
def alone(model: Path) -> list[RequestOutput]:
    """What comes of each text alone."""
    llm = load(model)
    return [llm.generate(text, PARAMS, use_tqdm=False)[0] for text in TEXTS]


def test_greedy_tokens_are_the_models(model: Path, config: ModelConfig) -> None:
    """Against the bare model, fed token by token, which is told where the prompt ends."""
    llm = load(model)
    prompt = llm.tokenizer.encode(TEXTS[3])
    (output,) = llm.generate([prompt], PARAMS, use_tqdm=False)
    runner = make_runner(make_model(config), num_blocks=32, block_size=8)
    sequence = FedSequence(list(prompt), range(1, 30), prompt_tokens=len(prompt))
    feed(runner, [(sequence, len(prompt))])
    for token in output.outputs[0].token_ids:
        assert token == sequence.logits[sequence.position - 1].argmax().item()
        sequence.token_ids = [*sequence.token_ids, token]
        feed(runner, [(sequence, 1)])
    llm.check_integrity()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "preempts"),
    [
        ({"max_num_batched_tokens": 8, "max_num_seqs": 3}, False),
        ({"num_kv_blocks": 13, "max_model_len": 88, "enable_prefix_caching": False}, True),
        ({"num_kv_blocks": 13, "max_model_len": 88}, True),
    ],
    ids=["chunks", "preemption", "preemption-cached"],
)
def test_tokens_do_not_depend_on_the_engines_limits(
    model: Path, alone: list[RequestOutput], options: dict[str, object], preempts: bool
) -> None:
    llm = load(model, **options)
    outputs = llm.generate(TEXTS, PARAMS, use_tqdm=False)
    assert [output.outputs for output in outputs] == [output.outputs for output in alone]
    assert (llm._engine.counters.preemptions > 0) is preempts
    llm.check_integrity()


def test_an_answer_in_the_next_prompt_is_computed_as_prompt(model: Path) -> None:
    """The first turn's prompt is found in the cache, its answer is not: it was generated."""
    llm = load(model)
    first = llm.tokenizer.encode("hello world 12 hello and so on")
    answer = llm.generate([first], PARAMS, use_tqdm=False)[0].outputs[0].token_ids
    second = [*first, *answer, *llm.tokenizer.encode(" and then?")]
    (warm,) = llm.generate([second], PARAMS, use_tqdm=False)
    assert warm.cached_tokens == len(first) // 8 * 8 > 0
    (cold,) = load(model).generate([second], PARAMS, use_tqdm=False)
    assert warm.outputs == cold.outputs
    # Once it was computed as prompt, it is found, too.
    (third,) = llm.generate([second], PARAMS, use_tqdm=False)
    assert third.cached_tokens == (len(second) - 1) // 8 * 8
    assert third.outputs == cold.outputs


def test_one_rank_can_cut_latents_into_one_slice(model: Path, alone: list[RequestOutput]) -> None:
    sliced = load(model, latents=LatentOptions(parallel="tpla"))
    found = sliced.generate(TEXTS, PARAMS, use_tqdm=False)
    assert [output.outputs for output in found] == [output.outputs for output in alone]
    rotated = load(model, latents=LatentOptions(parallel="tpla", transform="hadamard"))
    found = rotated.generate(TEXTS, PARAMS, use_tqdm=False)
    tokens = [[output.outputs[0].token_ids for output in each] for each in (found, alone)]
    assert tokens[0] == tokens[1]
    layouts = {llm._built.layout.digest() for llm in (load(model), sliced, rotated)}
    assert len(layouts) == 3


def test_the_traffic_of_experts_is_told_by_step(model: Path, config: ModelConfig) -> None:
    llm = load(model)
    llm.generate([[7, 8, 9, 10]], SamplingParams(temperature=0, max_tokens=3), use_tqdm=False)
    assert config.moe is not None
    each, size = config.moe.experts_per_token, config.moe.expert_size * config.hidden_size * 3 * 4
    assert [layer.layer for layer in llm._engine.traffic] == [1, 2]
    for layer in llm._engine.traffic:  # of the last step, a single row
        assert (layer.distinct, sum(layer.rows)) == (each, each)
        assert layer.loaded_bytes == each * size
    totals = llm._engine.counters.experts
    assert list(totals) == [1, 2]
    for total in totals.values():
        assert total.steps == 3
        assert total.distinct > 3 * each
        assert total.loaded_bytes == total.distinct * size


def test_one_rank_cannot_share(model: Path) -> None:
    with pytest.raises(ConfigError, match="--mla-shards 2: must divide the number of ranks"):
        load(model, latents=LatentOptions(parallel="dcp", shards=2))
