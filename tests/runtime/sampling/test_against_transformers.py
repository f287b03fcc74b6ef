"""Filters and the repetition penalty mean what transformers means by them."""

from typing import Any

import pytest
import torch
from tests.support.sampling import random_logits, state
from torch import Tensor

from twinflow.runtime.sampling.filters import keep_threshold
from twinflow.runtime.sampling.modifiers import apply_modifiers
from twinflow.runtime.sampling_params import SamplingParams

pytestmark = pytest.mark.slow

ROWS, VOCAB = 100, 2000
NO_TOKENS = torch.zeros(ROWS, 0, dtype=torch.int64)


@pytest.fixture(scope="module")
def warpers() -> Any:
    return pytest.importorskip("transformers.generation.logits_process")


def kept_by(scores: Tensor, *processors: Any) -> Tensor:
    for processor in processors:
        scores = processor(NO_TOKENS, scores)
    return torch.isfinite(scores)


def kept_by_twinflow(scores: Tensor, params: SamplingParams) -> Tensor:
    scaled = scores / params.temperature
    return scaled >= keep_threshold(scaled, [params] * ROWS)


@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.8])
class TestFilters:
    def test_top_k(self, warpers: Any, scale: float, temperature: float) -> None:
        scores = random_logits(ROWS, VOCAB, seed=1, scale=scale)
        for top_k in (1, 40, VOCAB):
            params = SamplingParams(temperature=temperature, top_k=top_k)
            expected = kept_by(scores / temperature, warpers.TopKLogitsWarper(top_k))
            assert torch.equal(kept_by_twinflow(scores, params), expected)

    def test_top_p(self, warpers: Any, scale: float, temperature: float) -> None:
        scores = random_logits(ROWS, VOCAB, seed=2, scale=scale)
        for top_p in (0.01, 0.5, 0.9, 0.99):
            params = SamplingParams(temperature=temperature, top_p=top_p)
            expected = kept_by((scores / temperature).double(), warpers.TopPLogitsWarper(top_p))
            assert torch.equal(kept_by_twinflow(scores, params), expected)

    def test_min_p(self, warpers: Any, scale: float, temperature: float) -> None:
        scores = random_logits(ROWS, VOCAB, seed=3, scale=scale)
        for min_p in (0.001, 0.1, 0.9):
            params = SamplingParams(temperature=temperature, min_p=min_p)
            expected = kept_by((scores / temperature).double(), warpers.MinPLogitsWarper(min_p))
            assert torch.equal(kept_by_twinflow(scores, params), expected)

    def test_all_in_order(self, warpers: Any, scale: float, temperature: float) -> None:
        scores = random_logits(ROWS, VOCAB, seed=4, scale=scale)
        params = SamplingParams(temperature=temperature, min_p=0.02, top_k=60, top_p=0.8)
        expected = kept_by(
            scores.double(),
            warpers.TemperatureLogitsWarper(temperature),
            warpers.MinPLogitsWarper(0.02),
            warpers.TopKLogitsWarper(60),
            warpers.TopPLogitsWarper(0.8),
        )
        assert torch.equal(kept_by_twinflow(scores, params), expected)


def test_repetition_penalty(warpers: Any) -> None:
    scores = random_logits(ROWS, VOCAB, seed=5)
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(VOCAB, (ROWS, 64), generator=generator)
    params = SamplingParams(repetition_penalty=1.3)
    states = [
        state(params, vocab_size=VOCAB, prompt=row[:40], outputs=row[40:])
        for row in tokens.tolist()
    ]
    expected = warpers.RepetitionPenaltyLogitsProcessor(1.3)(tokens, scores.clone())
    apply_modifiers(scores, states)
    torch.testing.assert_close(scores, expected)
