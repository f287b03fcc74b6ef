"""Which tokens the sampler chooses, and that rows do not influence one another."""

import math
import random

import pytest
import torch
from tests.support.sampling import choose, distribution, random_logits, random_state, state

from twinflow.runtime.outputs import NumericalFault, SampledToken
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


def test_greedy_takes_the_maximum() -> None:
    logits = random_logits(33, 777, seed=1)
    chosen = choose(logits, [state(GREEDY, vocab_size=777) for _ in range(33)])
    assert [token.token_id for token in chosen] == [row.index(max(row)) for row in logits.tolist()]
    assert all(token.logprobs is None for token in chosen)


@pytest.mark.parametrize("vocab_size", [2, 17, 64, 1000, 49_152])
def test_the_lowest_of_equal_tokens_wins(vocab_size: int) -> None:
    rng = random.Random(vocab_size)
    logits = torch.zeros(50, vocab_size)
    ties = [rng.sample(range(vocab_size), k=min(vocab_size, rng.randint(1, 9))) for _ in range(50)]
    for row, tokens in enumerate(ties):
        logits[row, tokens] = 1.5
    chosen = choose(logits, [state(GREEDY, vocab_size=vocab_size) for _ in ties])
    assert [token.token_id for token in chosen] == [min(tokens) for tokens in ties]


@pytest.mark.parametrize(("vocab_size", "rows"), [(5, 400), (33, 300), (1000, 200), (40_000, 24)])
def test_a_row_gets_the_same_token_alone_and_in_any_batch(vocab_size: int, rows: int) -> None:
    rng = random.Random(vocab_size)
    logits = random_logits(rows, vocab_size, seed=rows)
    # Models in bf16 produce many equal logits.
    logits[::2] = logits[::2].bfloat16().float()
    states = [random_state(rng, vocab_size) for _ in range(rows)]
    alone = [choose(logits[row : row + 1], [states[row]])[0] for row in range(rows)]
    for size in (2, 7, rows):
        order = rng.sample(range(rows), k=rows)
        for start in range(0, rows, size):
            members = order[start : start + size]
            together = choose(logits[members], [states[row] for row in members])
            assert together == [alone[row] for row in members]


def test_the_number_of_threads_changes_nothing() -> None:
    rng = random.Random(0)
    logits = random_logits(16, 30_011, seed=0)
    states = [random_state(rng, 30_011) for _ in range(16)]
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(choose(logits, states))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1] == results[2]


def test_seed_and_position_decide_and_nothing_else() -> None:
    logits = torch.zeros(1, 1000)
    params = SamplingParams(seed=1)  # the state's seed counts, not the request's

    def token(seed: int, prompt: int, outputs: int) -> int:
        made = state(params, vocab_size=1000, seed=seed, prompt=[0] * prompt, outputs=[1] * outputs)
        return choose(logits, [made])[0].token_id

    assert token(4, prompt=5, outputs=3) == token(4, prompt=8, outputs=0)
    by_position = {token(4, prompt=5, outputs=n) for n in range(20)}
    by_seed = {token(seed, prompt=5, outputs=0) for seed in range(20)}
    assert len(by_position) > 15 and len(by_seed) > 15


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=2.0),
        SamplingParams(top_k=4),
        SamplingParams(top_k=100),
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.2),
        SamplingParams(temperature=1.7, min_p=0.05, top_k=7, top_p=0.9),
    ],
    ids=lambda params: f"t{params.temperature}-k{params.top_k}-p{params.top_p}-m{params.min_p}",
)
def test_tokens_follow_the_distribution(params: SamplingParams) -> None:
    """Chi-square of 30000 draws at fixed seeds; statistics beyond 0.9999 would fail."""
    draws, vocab_size = 30_000, 12
    row = random_logits(1, vocab_size, seed=5, scale=0.8)
    states = [state(params, vocab_size=vocab_size, seed=seed) for seed in range(draws)]
    chosen = [token.token_id for token in choose(row.expand(draws, -1).contiguous(), states)]
    expected = distribution(row[0].tolist(), params)
    statistic, kept = 0.0, sum(p > 0 for p in expected)
    for token, probability in enumerate(expected):
        found = chosen.count(token)
        if probability == 0.0:
            assert found == 0
        else:
            statistic += (found - draws * probability) ** 2 / (draws * probability)
    # Wilson-Hilferty: the cube root of chi-square is nearly normal; 3.72 is its 0.9999 quantile.
    degrees = kept - 1
    limit = degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3
    assert statistic < limit


def test_rare_tokens_are_drawn_at_their_rate() -> None:
    """One token of weight e**-8 against a thousand equal ones, 20000 draws."""
    logits = torch.zeros(1, 1001)
    logits[0, 1000] = -8.0 + math.log(1000)
    states = [state(SamplingParams(), vocab_size=1001, seed=seed) for seed in range(20_000)]
    sampler = Sampler(1001)
    chosen = [
        result
        for start in range(0, 20_000, 1000)
        for result in sampler.sample(
            logits.expand(1000, -1).contiguous(), states[start : start + 1000]
        )
    ]
    found = sum(isinstance(r, SampledToken) and r.token_id == 1000 for r in chosen)
    expected = 20_000 * math.exp(-8) / (1 + math.exp(-8))
    assert abs(found - expected) < 4 * math.sqrt(expected)


def test_filters_keep_tokens_of_equal_probability_together() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0, -4.0]])
    for params in (SamplingParams(top_k=3), SamplingParams(top_p=0.8)):
        states = [state(params, vocab_size=6, seed=seed) for seed in range(500)]
        chosen = choose(logits.expand(500, -1).contiguous(), states)
        assert {token.token_id for token in chosen} == {0, 1, 2, 3, 4}


def test_a_filter_that_keeps_one_token_is_greedy() -> None:
    logits = random_logits(40, 300, seed=8)
    greedy = choose(logits, [state(GREEDY, vocab_size=300) for _ in range(40)])
    for params in (SamplingParams(top_k=1), SamplingParams(top_p=1e-9), SamplingParams(min_p=1.0)):
        states = [state(params, vocab_size=300, seed=seed) for seed in range(40)]
        assert choose(logits, states) == greedy


def test_the_lowest_temperature_is_nearly_greedy_and_finite() -> None:
    logits = random_logits(40, 300, seed=9)
    greedy = choose(logits, [state(GREEDY, vocab_size=300) for _ in range(40)])
    cold = SamplingParams(temperature=1e-5, top_p=0.9)
    assert choose(logits, [state(cold, vocab_size=300) for _ in range(40)]) == greedy


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e38])
def test_a_poisoned_row_does_not_touch_its_neighbours(poison: float) -> None:
    rng = random.Random(3)
    logits = random_logits(30, 100, seed=3)
    states = [random_state(rng, 100) for _ in range(30)]
    clean = choose(logits, states)
    bad = [0, 7, 8, 29]
    for row in bad:
        logits[row, rng.randrange(100)] = poison
    results = Sampler(100).sample(logits, states)
    for row, result in enumerate(results):
        expected = NumericalFault(states[row].position) if row in bad else clean[row]
        assert result == expected


def test_every_parameter_survives_rows_that_are_not_numbers() -> None:
    rng = random.Random(4)
    states = [random_state(rng, 50) for _ in range(200)]
    results = Sampler(50).sample(torch.full((200, 50), math.nan), states)
    assert results == [NumericalFault(each.position) for each in states]


def test_an_empty_batch_gives_nothing() -> None:
    assert Sampler(10).sample(torch.empty(0, 10), []) == []


@pytest.mark.parametrize(
    "logits",
    [
        torch.zeros(2, 10),
        torch.zeros(1, 11),
        torch.zeros(1, 10).double(),
        torch.zeros(1, 20)[:, ::2],
    ],
    ids=["rows", "columns", "dtype", "strides"],
)
def test_logits_of_the_wrong_form_are_refused(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="logits"):
        Sampler(10).sample(logits, [state(GREEDY, vocab_size=10)])
