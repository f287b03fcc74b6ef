"""Minimum length, bias and penalties against their definitions, and the counts behind them."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from tests.support.sampling import choose, random_logits, random_state, state

from twinflow.protos.errors import InvalidRequest
from twinflow.runtime.sampling import SamplingState
from twinflow.runtime.sampling.modifiers import apply_modifiers
from twinflow.runtime.sampling.state import TokenCounts
from twinflow.runtime.sampling_params import SamplingParams

VOCAB = 50


def naive(logits: list[float], made: SamplingState, prompt: list[int], outputs: list[int]) -> None:
    """Edit one row the way the parameters are documented, one token at a time."""
    params, counts = made.params, Counter(outputs)
    for token in made.banned_ids.tolist():
        logits[token] = float("-inf")
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    for token in {*prompt, *outputs}:
        factor = params.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token, count in counts.items():
        logits[token] -= params.frequency_penalty * count + params.presence_penalty


def test_modified_logits_match_their_definition() -> None:
    rng = random.Random(1)
    params = [random_state(rng, VOCAB).params for _ in range(200)]
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))] for _ in params]
    outputs = [[rng.randrange(VOCAB) for _ in range(rng.randint(0, 9))] for _ in params]
    states = [
        state(p, vocab_size=VOCAB, prompt=prompt, outputs=output, stop_token_ids=[3, 7])
        for p, prompt, output in zip(params, prompts, outputs, strict=True)
    ]
    logits = random_logits(len(states), VOCAB, seed=1)
    expected = logits.double().tolist()
    for row, made in enumerate(states):
        naive(expected[row], made, prompts[row], outputs[row])
    apply_modifiers(logits, states)
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_rows_without_modifiers_are_not_touched() -> None:
    logits = random_logits(3, VOCAB, seed=2)
    before = logits.clone()
    plain = state(SamplingParams(), vocab_size=VOCAB, outputs=[1, 2])
    penalised = state(SamplingParams(presence_penalty=1.0), vocab_size=VOCAB, outputs=[1, 2])
    apply_modifiers(logits, [plain, penalised, plain])
    assert torch.equal(logits[0], before[0]) and torch.equal(logits[2], before[2])
    assert (logits[1] != before[1]).nonzero().flatten().tolist() == [1, 2]


def test_presence_and_frequency_look_at_the_output_only() -> None:
    params = SamplingParams(presence_penalty=2.0, frequency_penalty=2.0)
    logits = torch.zeros(1, VOCAB)
    apply_modifiers(logits, [state(params, vocab_size=VOCAB, prompt=[4, 4], outputs=[5, 5, 6])])
    assert logits[0, 4:7].tolist() == [0.0, -6.0, -4.0]


def test_counts_grow_like_a_counter() -> None:
    rng = random.Random(5)
    prompt = [rng.randrange(400) for _ in range(30)]
    counts, naive_counts = TokenCounts(prompt), Counter[int]()
    for _ in range(1000):
        token = rng.randrange(400)
        counts.add(token)
        naive_counts[token] += 1
    found = dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True))
    assert found == {token: naive_counts[token] for token in {*prompt, *naive_counts}}
    assert len(np.unique(counts.ids)) == len(counts.ids)


def test_min_tokens_bans_stop_tokens_until_reached() -> None:
    logits = torch.zeros(1, 10)
    logits[0, [2, 9]] = torch.tensor([5.0, 4.0])
    params = SamplingParams(temperature=0.0, min_tokens=2)
    made = state(params, vocab_size=10, stop_token_ids=[2, 9, 77])
    chosen = []
    for _ in range(3):
        token = choose(logits, [made])[0].token_id
        chosen.append(token)
        made.append(token)
    assert chosen == [0, 0, 2]
    assert made.position == 1 + 3


def test_bias_bans_and_forces() -> None:
    logits = torch.zeros(2, 10)
    logits[:, 3] = 10.0
    forced = state(SamplingParams(temperature=0.0, logit_bias={8: 100.0}), vocab_size=10)
    banned = state(SamplingParams(temperature=0.0, logit_bias={3: -100.0}), vocab_size=10)
    assert [token.token_id for token in choose(logits, [forced, banned])] == [8, 0]


def test_a_vanishing_repetition_penalty_stays_finite() -> None:
    params = SamplingParams(repetition_penalty=1e-300, top_p=0.9)
    made = state(params, vocab_size=10, prompt=[1, 2, 3])
    logits = torch.tensor([[0.0, 0.0, 4.0, -4.0, *[0.0] * 6]])
    apply_modifiers(logits, [made])
    assert torch.isfinite(logits).all()
    assert choose(torch.tensor([[0.0, 0.0, 4.0, -4.0, *[0.0] * 6]]), [made])[0].token_id == 2


@pytest.mark.parametrize(
    ("params", "prompt", "param"),
    [
        (SamplingParams(logit_bias={10: 1.0}), [0], "logit_bias"),
        (SamplingParams(stop_token_ids=(10,)), [0], "stop_token_ids"),
        (SamplingParams(repetition_penalty=1.1), [0, 10], "prompt"),
        (SamplingParams(repetition_penalty=1.1), [-1, 0], "prompt"),
    ],
)
def test_tokens_outside_the_vocabulary_are_refused(
    params: SamplingParams, prompt: list[int], param: str
) -> None:
    with pytest.raises(InvalidRequest, match="outside the vocabulary of 10") as caught:
        state(params, vocab_size=10, prompt=prompt)
    assert caught.value.param == param


def test_a_minimum_length_that_bans_everything_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens"):
        state(SamplingParams(min_tokens=1), vocab_size=3, stop_token_ids=[0, 1, 2])


def test_only_tokens_of_the_vocabulary_can_be_recorded() -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        state(SamplingParams(), vocab_size=10, outputs=[10])
