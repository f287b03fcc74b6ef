"""Engines of several ranks that share latents: the tokens of one process, or their own in any mix.

Every rank runs the whole engine here. They take the same steps because nothing but the requests
decides what a step is.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.checkpoints import small_config, write_checkpoint
from tests.support.engines import create_request, run

from twinflow.parallel.kv_part import KVPart
from twinflow.parallel.ranks.base import OneRank, RankGroup, Seat
from twinflow.parallel.ranks.threads import run_ranks
from twinflow.runtime.build import BuiltEngine, assemble_engine
from twinflow.runtime.engine_plan import EngineOptions, plan_engine
from twinflow.runtime.latent_setup import LatentOptions
from twinflow.runtime.runner_loading import load_runner
from twinflow.runtime.sampling_params import SamplingParams

STEM = list(range(40, 90))
PROMPTS = [STEM[:33], [*STEM[:48], 7], [5], STEM[:16], STEM[:47], [9] * 60]

DCP = LatentOptions(parallel="dcp", shards=2)
TPLA = LatentOptions(parallel="tpla", shards=2, transform="hadamard")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config("DeepseekV3ForCausalLM", num_heads=8)
    return write_checkpoint(tmp_path_factory.mktemp("model"), config)


def build(model: Path, ranks: RankGroup, latents: LatentOptions, num_blocks: int) -> BuiltEngine:
    options = EngineOptions(
        model=model,
        dtype="float32",
        block_size=8,
        num_kv_blocks=num_blocks,
        max_num_batched_tokens=64,
        max_num_seqs=4,
        latents=latents,
    )
    plan = plan_engine(options, ranks)
    return assemble_engine(plan, load_runner(plan, ranks), clock=lambda: 0.0)


def generate(built: BuiltEngine, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    """Tokens of each prompt, all of them at once."""
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=20, ignore_eos=True)
    requests = [create_request(prompt, params=params) for prompt in prompts]
    for request in requests:
        built.engine.add_request(request)
    tokens = run(built.engine).tokens
    built.engine.check_integrity()
    assert built.engine.blocks.num_idle == built.engine.blocks.num_blocks
    return [tuple(tokens[request.request_id]) for request in requests]


def generate_on(
    size: int, model: Path, latents: LatentOptions, num_blocks: int = 64
) -> list[list[tuple[int, ...]]]:
    """What each rank generates for all prompts at once."""
    return run_ranks(size, lambda r: generate(build(model, r, latents, num_blocks), PROMPTS))


@pytest.fixture(scope="module")
def expected(model: Path) -> list[tuple[int, ...]]:
    """What one process generates."""
    return generate(build(model, OneRank(), LatentOptions(), 64), PROMPTS)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_shared_blocks_lead_to_the_tokens_of_one_process(
    model: Path, expected: list[tuple[int, ...]], size: int
) -> None:
    assert generate_on(size, model, DCP) == [expected] * size


@pytest.mark.slow
def test_shared_blocks_hold_twice_the_context(model: Path, expected: list[tuple[int, ...]]) -> None:
    """The longest sequence has 80 tokens; one rank alone could hold 64."""

    def work(ranks: RankGroup) -> tuple[int, int, list[tuple[int, ...]]]:
        built = build(model, ranks, DCP, 9)
        tokens = generate(built, PROMPTS)
        assert built.engine.counters.preemptions > 0
        return built.config.max_model_len, built.engine.blocks.block_size, tokens

    assert run_ranks(2, work) == [(8 * 16, 16, expected)] * 2


@pytest.mark.slow
def test_a_prefill_worker_computes_exactly_in_the_scheme_of_decode_workers(
    model: Path, expected: list[tuple[int, ...]]
) -> None:
    for latents in (DCP, TPLA):
        prefill = build(model, OneRank(), replace(latents, hold_all=True), 64)
        decode = plan_engine(EngineOptions(model=model, latents=latents, block_size=8), Seat(1, 2))
        assert prefill.layout.digest() == decode.layout.digest()
        assert generate(prefill, PROMPTS) == expected
    slices = {part.name: part for part in decode.rank_layout.parts}
    assert slices == {"latent 1/2": KVPart("latent 1/2", 1, 16), "rope": KVPart("rope", 1, 8)}


@pytest.mark.slow
def test_slices_give_a_request_the_same_tokens_in_any_company(model: Path) -> None:
    together = generate_on(2, model, TPLA)
    assert together[0] == together[1]
    assert generate_on(2, model, TPLA, num_blocks=18)[0] == together[0], "with preemption"

    def alone(ranks: RankGroup) -> list[tuple[int, ...]]:
        built = build(model, ranks, TPLA, 64)
        return [generate(built, [prompt])[0] for prompt in PROMPTS]

    assert run_ranks(2, alone)[0] == together[0]
