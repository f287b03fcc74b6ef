"""Log probabilities come from the model's own distribution and are exact."""

import math

import pytest
import torch
from tests.support.sampling import choose, random_logits, state

from twinflow.runtime.sampling.ordering import index_of_key, largest, rank_keys
from twinflow.runtime.sampling.softmax import log_normalizer, weight_bits
from twinflow.runtime.sampling_params import SamplingParams


def test_logprobs_are_those_of_log_softmax() -> None:
    logits = random_logits(20, 3000, seed=1)
    states = [
        state(SamplingParams(logprobs=row % 6, temperature=0.5), vocab_size=3000, seed=row)
        for row in range(20)
    ]
    expected = torch.log_softmax(logits.double(), dim=-1)
    for row, token in enumerate(choose(logits, states)):
        assert token.logprobs is not None
        assert token.logprobs.token_id == token.token_id
        assert token.logprobs.logprob == pytest.approx(float(expected[row, token.token_id]))
        values, ids = expected[row].topk(row % 6)
        assert [token_id for token_id, _ in token.logprobs.top] == ids.tolist()
        assert [value for _, value in token.logprobs.top] == pytest.approx(values.tolist())


def test_nothing_that_steers_sampling_moves_the_logprobs() -> None:
    logits = random_logits(1, 100, seed=2)
    plain = state(SamplingParams(temperature=0.0, logprobs=20), vocab_size=100)
    steered = state(
        SamplingParams(
            temperature=0.0,
            logprobs=20,
            logit_bias={5: -100.0, 6: 100.0},
            repetition_penalty=2.0,
            min_tokens=9,
        ),
        vocab_size=100,
        stop_token_ids=[1],
    )
    first, second = choose(logits.expand(2, -1).contiguous(), [plain, steered])
    assert first.logprobs is not None and second.logprobs is not None
    assert second.token_id == 6
    assert second.logprobs.top == first.logprobs.top


def test_rows_that_ask_for_nothing_get_nothing() -> None:
    logits = random_logits(3, 10, seed=3)
    states = [
        state(SamplingParams(temperature=0.0, logprobs=count), vocab_size=10)
        for count in (None, 0, 20)
    ]
    none, chosen_only, all_tokens = choose(logits, states)
    assert none.logprobs is None
    assert chosen_only.logprobs is not None and chosen_only.logprobs.top == ()
    assert all_tokens.logprobs is not None and len(all_tokens.logprobs.top) == 10
    assert math.fsum(math.exp(value) for _, value in all_tokens.logprobs.top) == pytest.approx(1.0)


def test_equally_likely_tokens_are_listed_by_id() -> None:
    logits = torch.zeros(1, 5000)
    logits[0, [4000, 30, 999]] = 2.0
    made = state(SamplingParams(temperature=0.0, logprobs=6), vocab_size=5000)
    logprobs = choose(logits, [made])[0].logprobs
    assert logprobs is not None
    assert [token for token, _ in logprobs.top] == [30, 999, 4000, 0, 1, 2]


def test_rank_keys_order_like_the_values() -> None:
    values = torch.cat([random_logits(1, 500, seed=4), torch.tensor([[0.0, -0.0, -1e30, 1e30]])], 1)
    order = index_of_key(rank_keys(values).sort(dim=-1, descending=True).values, 504)
    expected = sorted(range(504), key=lambda index: (-float(values[0, index]), index))
    assert order[0].tolist() == expected


@pytest.mark.parametrize("count", [1, 5, 99, 100])
def test_largest_values_are_sorted(count: int) -> None:
    values = random_logits(7, 100, seed=5)
    assert torch.equal(
        largest(values, count), values.sort(dim=-1, descending=True).values[:, :count]
    )


@pytest.mark.parametrize("vocab_size", [2, 1000, 2**18])
def test_integer_weights_do_not_overflow(vocab_size: int) -> None:
    assert vocab_size * 2 ** weight_bits(vocab_size) < 2**63
    equal = torch.full((1, vocab_size), 7.0)
    assert float(log_normalizer(equal)) == pytest.approx(7.0 + math.log(vocab_size))
