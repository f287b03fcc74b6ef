"""Random requests that differ in everything that may change a token, from one seed.

Prompts share prefixes of many lengths, so that prefix caches are hit in part and in full.
"""

import random
from dataclasses import dataclass, replace

from twinflow.runtime.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for tokens.

    Attributes:
        prompt: token ids.
        params: with a seed and max_tokens.
    """

    prompt: tuple[int, ...]
    params: SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class MixShape:
    """Bounds of a mix.

    Attributes:
        vocab_size: of the model.
        longest_prompt: tokens.
        most_tokens: longest output.
        first_token: lowest token id of prompts; those below have a meaning of their own.
    """

    vocab_size: int
    longest_prompt: int
    most_tokens: int
    first_token: int = 3


def random_asks(count: int, shape: MixShape, seed: int) -> list[Ask]:
    """A mix of greedy and sampled requests."""
    rng = random.Random(seed)
    tokens = range(shape.first_token, shape.vocab_size)
    stems = [rng.choices(tokens, k=shape.longest_prompt) for _ in range(4)]
    return [_random_ask(rng, shape, stems) for _ in range(count)]


def _random_ask(rng: random.Random, shape: MixShape, stems: list[list[int]]) -> Ask:
    length = rng.randint(1, shape.longest_prompt)
    shared = rng.choice([0, rng.randint(0, length), length])
    tail = rng.choices(range(shape.first_token, shape.vocab_size), k=length - shared)
    return Ask((*rng.choice(stems)[:shared], *tail), _random_params(rng, shape))


def _random_params(rng: random.Random, shape: MixShape) -> SamplingParams:
    """Greedy, plainly sampled or sampled with everything at once, equally often."""
    vocabulary = range(shape.first_token, shape.vocab_size)
    max_tokens = rng.randint(1, shape.most_tokens)
    params = SamplingParams(
        temperature=0,
        seed=rng.getrandbits(63),
        max_tokens=max_tokens,
        logprobs=rng.choice([None, 0, 5]),
        ignore_eos=rng.random() < 0.8,
    )
    match rng.choice(["greedy", "sampled", "everything"]):
        case "greedy":
            return params
        case "sampled":
            return replace(params, temperature=0.8, top_p=0.9)
        case _:
            return replace(
                params,
                temperature=rng.uniform(0.5, 1.5),
                top_k=rng.randint(2, 60),
                top_p=rng.uniform(0.7, 1.0),
                min_p=rng.choice([0.0, 0.02]),
                presence_penalty=rng.uniform(-1.0, 1.0),
                frequency_penalty=rng.uniform(0.0, 1.0),
                repetition_penalty=rng.uniform(0.8, 1.5),
                logit_bias={rng.choice(vocabulary): 3.0, rng.choice(vocabulary): -50.0},
                min_tokens=rng.randint(0, max_tokens),
                stop_token_ids=tuple(rng.choices(vocabulary, k=10)),
            )
