"""The sampling state of a sequence, and of continuations that may not come true."""

import random

import torch
from tests.support.sampling import choose, random_params, state

from twinflow.runtime.sampling import SamplingState
from twinflow.runtime.sampling_params import SamplingParams


def test_a_continuation_is_sampled_like_a_sequence_that_has_it() -> None:
    rng = random.Random(1)
    for seed in range(60):
        params, tokens = random_params(rng, 50), [rng.randrange(50) for _ in range(4)]
        begun = state(params, vocab_size=50, seed=seed, prompt=(1, 2, 3), outputs=tokens[:2])
        path = [begun, begun.after(tokens[2])]
        path.append(path[-1].after(tokens[3]))
        grown = [
            state(params, vocab_size=50, seed=seed, prompt=(1, 2, 3), outputs=tokens[:count])
            for count in (2, 3, 4)
        ]
        logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed))
        assert choose(logits, path) == choose(logits, grown)


def test_a_continuation_changes_neither_the_sequence_nor_its_siblings() -> None:
    params = SamplingParams(frequency_penalty=0.5, repetition_penalty=1.2, min_tokens=3)
    begun = state(params, vocab_size=9, prompt=(1, 1, 2), outputs=(4,), stop_token_ids=(0,))

    def look(of: SamplingState) -> tuple[int, list[int], list[float], list[int]]:
        assert of.counts is not None
        return (
            of.position,
            of.counts.ids.tolist(),
            of.counts.counts.tolist(),
            of.banned_ids.tolist(),
        )

    before = look(begun)
    first, second = begun.after(4), begun.after(7)
    first.append(8)
    assert look(begun) == before == (4, [1, 2, 4], [0, 0, 1], [0])
    assert look(first) == (6, [1, 2, 4, 8], [0, 0, 2, 1], [])
    assert look(second) == (5, [1, 2, 4, 7], [0, 0, 1, 1], [0])
