"""Latent attention in a model: the same bits in any company, the same logits on any ranks."""

import random
from dataclasses import dataclass

import pytest
import torch
from tests.support.latent_models import latent_config, run_latent_ranks
from tests.support.latent_oracle import LatentOracle
from tests.support.runners import (
    FedSequence,
    feed,
    make_model,
    make_runner,
    pages,
    random_tokens,
)
from tests.support.tiny_models import ROPE_SCALINGS, tiny_config, tiny_state_dict
from torch import Tensor

from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.protos.errors import ConfigError
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.models.config import ModelConfig

CONFIGS = {
    "compressed query": latent_config(),
    "plain query": latent_config("DeepseekV2ForCausalLM", query_rank=None),
    "odd sizes": latent_config(kv_rank=20, nope_dim=9, rope_dim=6, head_dim=6, value_dim=7),
    "yarn": latent_config(rope_scaling=ROPE_SCALINGS["yarn"]),
    "experts": tiny_config("DeepseekV3ForCausalLM"),
}


def fed(runner: ModelRunner, tokens: list[int], sizes: list[int], prompt: int) -> FedSequence:
    """A sequence after it was computed in pieces."""
    sequence = FedSequence(tokens, list(range(1, 2 + len(tokens) // 16)), prompt_tokens=prompt)
    for size in sizes:
        feed(runner, [(sequence, size)])
    return sequence


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_bits_do_not_depend_on_chunking_or_company(config: ModelConfig) -> None:
    runner = make_runner(make_model(config))
    if not runner.batch_invariant:
        pytest.skip("the batched matrix products of this machine are not batch invariant")
    lengths, prompts = [190, 150, 33, 5], [150, 0, 33, 2]

    def sequences(first_block: int) -> list[FedSequence]:
        found = []
        for seed, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
            tokens = random_tokens(length, config.vocab_size, seed)
            blocks = list(range(first_block, first_block + 12))
            found.append(FedSequence(tokens, blocks, prompt_tokens=prompt))
            first_block += 12
        return found

    expected = sequences(1)
    for sequence in expected:
        while sequence.remaining:
            feed(runner, [(sequence, 1)])
    expected_pages = [pages(runner, sequence) for sequence in expected]

    source = random.Random(config.vocab_size)
    for _ in range(5):
        runner.kv_cache.data[100:] = float("nan")  # what earlier owners of the blocks left
        found = sequences(100)
        while any(sequence.remaining for sequence in found):
            unfinished = [sequence for sequence in found if sequence.remaining]
            chosen = source.sample(unfinished, k=source.randrange(1, len(unfinished) + 1))
            sizes = [source.choice([1, 1, 3, 16, 37, 64, 300]) for _ in chosen]
            feed(runner, [(s, min(n, s.remaining)) for s, n in zip(chosen, sizes, strict=True)])
        for sequence, other, page in zip(found, expected, expected_pages, strict=True):
            for position, row in sequence.logits.items():
                assert torch.equal(row, other.logits[position]), f"logits at {position}"
            used = -(-len(sequence.token_ids) // 16)
            assert torch.equal(pages(runner, sequence)[:used], page[:used])


def test_bits_do_not_depend_on_chunking_over_several_spans() -> None:
    config = latent_config(max_position=4096)
    runner = make_runner(make_model(config), max_num_tokens=2400)
    tokens = random_tokens(2300, config.vocab_size, seed=3)
    results = []
    for sizes in ([2300], [900, 124, 1176, 100], [1023, 2, 1075, 120, 63, 17]):
        runner.kv_cache.data.fill_(float("nan"))
        sequence = fed(runner, tokens, sizes, prompt=2200)
        results.append((sequence.logits[2299], pages(runner, sequence)))
    for row, page in results[1:]:
        assert torch.equal(row, results[0][0])
        assert torch.equal(page, results[0][1])


@pytest.mark.parametrize("config", [CONFIGS["compressed query"], CONFIGS["yarn"]])
def test_both_forms_compute_the_same_attention(config: ModelConfig) -> None:
    tokens = random_tokens(90, config.vocab_size, seed=7)
    expected = LatentOracle(config, tiny_state_dict(config)).logits(tokens, 90)
    for prompt in (0, 40, 90):
        sequence = fed(make_runner(make_model(config)), tokens, [30, 30, 1, 29], prompt)
        for position, row in sequence.logits.items():
            torch.testing.assert_close(row.double(), expected[position], atol=1e-5, rtol=0.0)


def test_bfloat16_agrees_within_rounding() -> None:
    config = latent_config()
    tokens = random_tokens(60, config.vocab_size, seed=7)
    expected = LatentOracle(config, tiny_state_dict(config, dtype=torch.bfloat16)).logits(tokens, 0)
    for prompt in (0, 60):
        runner = make_runner(make_model(config, torch.bfloat16))
        sequence = fed(runner, tokens, [59, 1], prompt)
        row = sequence.logits[59].double()
        assert (row - expected[59]).pow(2).mean().sqrt() < 0.03 * expected[59].std()


@dataclass
class Job:
    """What every rank does: compute a prompt in pieces, then tokens one by one, then several."""

    config: ModelConfig
    prompt: int = 60
    sizes: tuple[int, ...] = (37, 23, 1, 1, 1, 30, 1)

    @property
    def tokens(self) -> list[int]:
        return random_tokens(sum(self.sizes), self.config.vocab_size, seed=5)

    def __call__(self, ranks: RankGroup, plan: LatentPlan | None) -> Tensor:
        """Logits after each step, [steps, vocab]."""
        runner = make_runner(make_model(self.config, ranks=ranks, latents=plan))
        runner.kv_cache.data.fill_(float("nan"))
        sequence = fed(runner, self.tokens, list(self.sizes), self.prompt)
        assert runner.kv_cache.data[0].isnan().all()
        return torch.stack(list(sequence.logits.values()))


EXACT = [
    (2, LatentScheme()),
    (4, LatentScheme()),
    (2, LatentScheme(kind="dcp", shards=2)),
    (4, LatentScheme(kind="dcp", shards=2)),
    (4, LatentScheme(kind="dcp", shards=4)),
    (2, LatentScheme(kind="tpla", shards=1)),
    (1, LatentScheme(kind="tpla", shards=1)),
]


@pytest.mark.parametrize(("size", "scheme"), EXACT, ids=lambda value: getattr(value, "meaning", ""))
def test_exact_sharings_compute_what_one_rank_computes(size: int, scheme: LatentScheme) -> None:
    job = Job(latent_config())
    expected = job(OneRank(), None)
    first, *others = run_latent_ranks(size, scheme, job)
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=0.0)
    for other in others:
        assert torch.equal(other, first)


@pytest.mark.parametrize("shards", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_contexts_around_whole_blocks_with_shards_that_hold_nothing(shards: int) -> None:
    """Every length from one token to one more than a block on each rank."""
    length = shards * 16 + 2
    job = Job(latent_config(), prompt=1, sizes=(1,) * length)
    found = run_latent_ranks(shards, LatentScheme(kind="dcp", shards=shards), job)[0]
    torch.testing.assert_close(found, job(OneRank(), None), atol=1e-5, rtol=0.0)


TPLA = [
    (2, LatentScheme(kind="tpla", shards=2)),
    (4, LatentScheme(kind="tpla", shards=2)),
    (4, LatentScheme(kind="tpla", shards=4)),
    (2, LatentScheme(kind="tpla", shards=2, common=8)),
    (4, LatentScheme(kind="tpla", shards=4, common=4)),
]


@pytest.mark.parametrize(("size", "scheme"), TPLA, ids=lambda value: getattr(value, "meaning", ""))
def test_sliced_latents_compute_what_their_definition_says(size: int, scheme: LatentScheme) -> None:
    config = latent_config()
    job = Job(config)
    exact = LatentOracle(config, tiny_state_dict(config)).logits(job.tokens, job.prompt)
    expected = LatentOracle(config, tiny_state_dict(config), scheme).logits(job.tokens, job.prompt)
    first, *others = run_latent_ranks(size, scheme, job)
    ends = torch.tensor(job.sizes).cumsum(0) - 1
    torch.testing.assert_close(first.double(), expected[ends], atol=1e-5, rtol=0.0)
    for other in others:
        assert torch.equal(other, first)
    # The prompt is computed exactly, and what is generated is not: the test tells them apart.
    torch.testing.assert_close(first[:2].double(), exact[ends[:2]], atol=1e-5, rtol=0.0)
    assert (first[2:].double() - exact[ends[2:]]).abs().amax(1).min() > 1e-2


def test_the_cache_must_hold_what_the_rank_is_to_hold() -> None:
    model = make_model(latent_config())
    layout = make_runner(make_model(latent_config(kv_rank=16))).kv_cache.layout
    with pytest.raises(ValueError, match=r"elements of a token, dtype\) \(2, 24, torch.float32\)"):
        ModelRunner(model, layout, 4, 16, torch.device("cpu"))


def test_what_cannot_be_shared_is_refused() -> None:
    config = latent_config()
    with pytest.raises(ConfigError, match="8 heads cannot be shared by 3 ranks"):
        run_latent_ranks(3, LatentScheme(), Job(config))
    scheme = LatentScheme(kind="tpla", shards=2, common=5)
    with pytest.raises(ConfigError, match="32 columns cannot be cut into 2 slices behind 5"):
        run_latent_ranks(2, scheme, Job(config))
