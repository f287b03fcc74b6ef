"""Latent attention in a model: the same bits in any company, the same logits on any ranks."""

import random
from dataclasses import dataclass, replace

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

from twinflow.parallel.latent.kind import LatentKind
from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.transforms.basis import LatentBasis, LatentTransform
from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.protos.errors import ConfigError
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.latent_weights import latent_config as latent_sizes

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
    for _ in range(3):
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


SHARED = [
    LatentScheme(),
    LatentScheme(kind="dcp", shards=2),
    LatentScheme(kind="tpla", shards=2),
    LatentScheme(kind="tpla", shards=2, common=8),
    LatentScheme(kind="tpla", shards=2, common=8, exact_layers=(1,)),
]
EXACT = [
    (2, LatentScheme()),
    (4, LatentScheme()),
    (2, LatentScheme(kind="dcp", shards=2)),
    (4, LatentScheme(kind="dcp", shards=2)),
    (4, LatentScheme(kind="dcp", shards=4)),
    (1, LatentScheme(kind="tpla", shards=1)),
    (2, LatentScheme(kind="tpla", shards=1)),
    (4, LatentScheme(kind="tpla", shards=1)),
    (2, LatentScheme(kind="tpla", shards=2, exact_layers=(0, 1))),
    (4, LatentScheme(kind="tpla", shards=2, exact_layers=(0, 1))),
    (4, LatentScheme(kind="tpla", shards=4, common=4, exact_layers=(0, 1))),
]


@pytest.mark.parametrize(("size", "scheme"), EXACT, ids=lambda value: getattr(value, "meaning", ""))
def test_exact_sharings_compute_what_one_rank_computes(size: int, scheme: LatentScheme) -> None:
    job = Job(latent_config())
    expected = job(OneRank(), None)
    first, *others = run_latent_ranks(size, scheme, job)
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=0.0)
    for other in others:
        assert torch.equal(other, first)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_one_slice_computes_the_bits_of_replicated_latents(size: int) -> None:
    job = Job(latent_config())
    replicated, one_slice = (
        run_latent_ranks(size, scheme, job)
        for scheme in (LatentScheme(), LatentScheme(kind="tpla", shards=1))
    )
    assert all(map(torch.equal, one_slice, replicated))


@dataclass
class Greedy:
    """What every rank does: continue a prompt."""

    config: ModelConfig
    steps: int = 64

    def __call__(self, ranks: RankGroup, plan: LatentPlan | None) -> list[int]:
        runner = make_runner(make_model(self.config, ranks=ranks, latents=plan))
        tokens = random_tokens(21, self.config.vocab_size, seed=8)
        sequence = FedSequence(tokens, list(range(1, 8)), prompt_tokens=len(tokens))
        feed(runner, [(sequence, len(tokens))])
        for _ in range(self.steps):
            tokens.append(int(sequence.logits[len(tokens) - 1].argmax()))
            feed(runner, [(sequence, 1)])
        return tokens


@pytest.mark.slow
@pytest.mark.parametrize("shards", [2, 4])
def test_shared_blocks_lead_to_the_same_tokens(shards: int) -> None:
    job = Greedy(CONFIGS["yarn"])
    expected = job(OneRank(), None)
    found = run_latent_ranks(shards, LatentScheme(kind="dcp", shards=shards), job)
    assert found == [expected] * shards


@dataclass
class Together:
    """What every rank does: prompts in one step, then a token of each in every step."""

    config: ModelConfig
    prompts: tuple[int, ...]
    steps: int = 3

    def __call__(self, ranks: RankGroup, plan: LatentPlan | None) -> Tensor:
        """Logits of all sequences after each step, [steps + 1, sequences, vocab]."""
        runner = make_runner(make_model(self.config, ranks=ranks, latents=plan), num_blocks=128)
        runner.kv_cache.data.fill_(float("nan"))
        sequences, first_block = [], 1
        for seed, prompt in enumerate(self.prompts):
            tokens = random_tokens(prompt + self.steps, self.config.vocab_size, seed)
            blocks = list(range(first_block, first_block + 2 + len(tokens) // 16))
            sequences.append(FedSequence(tokens, blocks, prompt_tokens=prompt))
            first_block = blocks[-1] + 1
        feed(runner, list(zip(sequences, self.prompts, strict=True)))
        for _ in range(self.steps):
            feed(runner, [(sequence, 1) for sequence in sequences])
        return torch.stack([torch.stack(list(s.logits.values())) for s in sequences], dim=1)


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("kind", ["dcp", "tpla"])
def test_prompts_around_whole_blocks_of_several_lengths_at_once(
    kind: LatentKind, shards: int
) -> None:
    """Ranks that hold nothing of one sequence hold something of another. Prompts are exact."""
    around = [n * 16 + d for n in range(1, shards + 2) for d in (-1, 0, 1)]
    job = Together(latent_config(), (1, *around))
    first, *others = run_latent_ranks(shards, LatentScheme(kind=kind, shards=shards), job)
    expected = job(OneRank(), None)
    exact = slice(None) if kind == "dcp" else slice(1)
    torch.testing.assert_close(first[exact], expected[exact], atol=1e-5, rtol=0.0)
    for other in others:
        assert torch.equal(other, first)


@pytest.mark.parametrize("scheme", SHARED, ids=lambda scheme: scheme.meaning)
def test_bits_do_not_depend_on_chunking_or_recomputation_on_ranks(scheme: LatentScheme) -> None:
    """Token by token, in chunks, and all of it again after a preemption."""
    config = latent_config()
    found = [
        run_latent_ranks(2, scheme, Job(config, prompt=70, sizes=sizes))[0][-1]
        for sizes in ((70, *(1,) * 40), (33, 30, 7, 20, 19, 1), (110,))
    ]
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


@pytest.mark.parametrize("shards", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_contexts_around_whole_blocks_with_shards_that_hold_nothing(shards: int) -> None:
    """Every length from one token to one more than a block on each rank and another block."""
    length = (shards + 1) * 16 + 1
    job = Job(latent_config(), prompt=1, sizes=(1,) * length)
    found = run_latent_ranks(shards, LatentScheme(kind="dcp", shards=shards), job)[0]
    torch.testing.assert_close(found, job(OneRank(), None), atol=1e-5, rtol=0.0)


TPLA = [
    (2, LatentScheme(kind="tpla", shards=2)),
    (4, LatentScheme(kind="tpla", shards=2)),
    (4, LatentScheme(kind="tpla", shards=4)),
    (2, LatentScheme(kind="tpla", shards=2, common=8)),
    (4, LatentScheme(kind="tpla", shards=4, common=4)),
    (2, LatentScheme(kind="tpla", shards=2, exact_layers=(0,))),
    (4, LatentScheme(kind="tpla", shards=2, common=8, exact_layers=(1,))),
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


def random_transform(config: ModelConfig, shards: int, *, orthogonal: bool) -> LatentTransform:
    """Bases that differ from layer to layer, and factors if they are not orthogonal."""
    width = latent_sizes(config).kv_rank
    generator = torch.Generator().manual_seed(shards)
    bases = []
    for _ in range(config.num_layers):
        left, right = (
            torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator))[0]
            for _ in range(2)
        )
        stretch = 0.5 + torch.rand(width, dtype=torch.float64, generator=generator)
        if orthogonal:
            bases.append(LatentBasis.of_orthogonal(left))
        else:
            factors = tuple((1.0 + 0.3 * torch.rand(shards, generator=generator)).tolist())
            matrix, inverse = (left * stretch) @ right, (right.mT / stretch) @ left.mT
            bases.append(LatentBasis(matrix, inverse, orthogonal=False, logit_factors=factors))
    return LatentTransform("random", bases)


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        (1, LatentScheme()),
        (2, LatentScheme(kind="dcp", shards=2)),
        (2, LatentScheme(kind="tpla", shards=2)),
        (4, LatentScheme(kind="tpla", shards=2)),
        (4, LatentScheme(kind="tpla", shards=4, common=4)),
        (4, LatentScheme(kind="tpla", shards=4, common=4, exact_layers=(1,))),
    ],
    ids=lambda value: getattr(value, "meaning", ""),
)
def test_latents_in_another_basis(size: int, scheme: LatentScheme, orthogonal: bool) -> None:
    config = latent_config()
    transform = random_transform(config, scheme.shards, orthogonal=orthogonal)
    layers = range(len(transform))
    whole = layers if scheme.kind != "tpla" else scheme.exact_layers
    bases = [transform.basis(i) for i in layers]
    for layer in whole:  # where logits are of a part of the sequence or added up, they are whole
        bases[layer] = replace(bases[layer], logit_factors=())
    transform = LatentTransform("random", bases)
    job = Job(config)
    expected = LatentOracle(config, tiny_state_dict(config), scheme, transform)
    exact = LatentOracle(config, tiny_state_dict(config))
    ends = torch.tensor(job.sizes).cumsum(0) - 1
    first, *others = run_latent_ranks(size, scheme, job, transform)
    wanted, unchanged = (o.logits(job.tokens, job.prompt)[ends] for o in (expected, exact))
    torch.testing.assert_close(first.double(), wanted, atol=1e-5, rtol=0.0)
    assert all(torch.equal(other, first) for other in others)
    # A basis changes nothing as long as all columns are seen, and the prompt never.
    same = 2 if scheme.kind == "tpla" else len(ends)
    torch.testing.assert_close(first[:same].double(), unchanged[:same], atol=1e-5, rtol=0.0)


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
