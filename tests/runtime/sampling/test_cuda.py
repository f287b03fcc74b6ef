"""The same guarantees on a GPU, with the CPU as the oracle. Skipped without CUDA."""

import random

import pytest
import torch
from tests.support.sampling import choose, random_logits, random_state, state

from twinflow.runtime.sampling.noise import NoiseSource, stream_key
from twinflow.runtime.sampling.ordering import first_argmax
from twinflow.runtime.sampling_params import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def test_noise_has_the_same_bits() -> None:
    keys = [stream_key(seed, 17) for seed in range(8)]
    cpu = NoiseSource(50_001, torch.device("cpu"), 8)
    gpu = NoiseSource(50_001, torch.device("cuda"), 8)
    assert torch.equal(cpu.bits(keys), gpu.bits(keys).cpu())
    torch.testing.assert_close(cpu.gumbel(keys), gpu.gumbel(keys).cpu(), rtol=1e-5, atol=1e-6)


def test_the_lowest_of_equal_tokens_wins() -> None:
    values = torch.randint(0, 3, (64, 50_001), device="cuda").float()
    assert torch.equal(first_argmax(values).cpu(), first_argmax(values.cpu()))


def test_a_row_gets_the_same_token_alone_and_in_any_batch() -> None:
    rng = random.Random(1)
    logits = random_logits(64, 30_001, seed=1).cuda()
    states = [random_state(rng, 30_001) for _ in range(64)]
    alone = [choose(logits[row : row + 1], [states[row]])[0] for row in range(64)]
    for size in (3, 64):
        order = rng.sample(range(64), k=64)
        for start in range(0, 64, size):
            members = order[start : start + size]
            together = choose(logits[members], [states[row] for row in members])
            assert together == [alone[row] for row in members]


def test_tokens_agree_with_the_cpu() -> None:
    """Logarithms may differ in their last bit, which moves a token once in a million draws."""
    logits = random_logits(500, 5000, seed=2)
    states = [state(SamplingParams(top_p=0.95), vocab_size=5000, seed=seed) for seed in range(500)]
    on_gpu = [token.token_id for token in choose(logits.cuda(), states)]
    assert on_gpu == [token.token_id for token in choose(logits, states)]
