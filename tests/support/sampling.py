"""Builders for tests of sampling, and the sampling distribution written out naively."""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from twinflow.runtime.outputs import SampledToken
from twinflow.runtime.sampling import Sampler, SamplingState
from twinflow.runtime.sampling_params import SamplingParams


def state(
    params: SamplingParams,
    *,
    vocab_size: int,
    seed: int = 0,
    prompt: Sequence[int] = (0,),
    outputs: Sequence[int] = (),
    stop_token_ids: Sequence[int] = (),
) -> SamplingState:
    """A sequence that has generated `outputs`."""
    made = SamplingState(params, seed, prompt, vocab_size, stop_token_ids)
    for token in outputs:
        made.append(token)
    return made


def choose(logits: Tensor, states: Sequence[SamplingState]) -> list[SampledToken]:
    """Sample without touching `logits`; every row must be healthy."""
    sampler = Sampler(logits.shape[-1], logits.device)
    results = sampler.sample(logits.clone(), states)
    tokens = [result for result in results if isinstance(result, SampledToken)]
    assert len(tokens) == len(results)
    return tokens


def random_params(rng: random.Random, vocab_size: int) -> SamplingParams:
    """Parameters of which each is as likely as not at its default."""

    def maybe(value: float, default: float) -> float:
        return value if rng.random() < 0.5 else default

    return SamplingParams(
        temperature=maybe(rng.uniform(0.1, 2.0), rng.choice([0.0, 1.0])),
        top_k=int(maybe(rng.randint(1, 2 * vocab_size), 0)),
        top_p=maybe(rng.uniform(0.05, 1.0), 1.0),
        min_p=maybe(rng.uniform(0.0, 0.5), 0.0),
        presence_penalty=maybe(rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(rng.uniform(-2, 2), 0.0),
        repetition_penalty=maybe(rng.uniform(0.5, 2.0), 1.0),
        logit_bias={
            rng.randrange(vocab_size): rng.uniform(-5, 5) for _ in range(rng.choice([0, 0, 3]))
        },
        min_tokens=rng.choice([0, 0, 4]),
        logprobs=rng.choice([None, None, 0, 5]),
    )


def random_state(rng: random.Random, vocab_size: int) -> SamplingState:
    """A sequence somewhere in its life."""
    return state(
        random_params(rng, vocab_size),
        vocab_size=vocab_size,
        seed=rng.getrandbits(64),
        prompt=[rng.randrange(vocab_size) for _ in range(rng.randint(1, 30))],
        outputs=[rng.randrange(vocab_size) for _ in range(rng.randint(0, 30))],
        stop_token_ids=[rng.randrange(vocab_size) for _ in range(2)],
    )


def distribution(logits: Sequence[float], params: SamplingParams) -> list[float]:
    """Probability of every token under temperature, min-p, top-k and top-p, one by one."""
    weights = [math.exp(logit / params.temperature) for logit in logits]
    highest = max(weights)
    weights = [weight if weight >= params.min_p * highest else 0.0 for weight in weights]
    ranked = sorted(range(len(weights)), key=lambda token: -weights[token])
    if 0 < params.top_k < len(weights):
        for token in ranked[params.top_k :]:
            weights[token] = 0.0
    total, mass = sum(weights), 0.0
    for token in ranked:
        mass, before = mass + weights[token], mass
        if before >= params.top_p * total:
            weights[token] = 0.0
    total = sum(weights)
    return [weight / total for weight in weights]


def random_logits(rows: int, vocab_size: int, seed: int, scale: float = 3.0) -> Tensor:
    """fp32 [rows, vocab_size], normal with standard deviation `scale`."""
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale
