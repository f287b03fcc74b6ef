"""DeepSeek models compute what transformers computes, on one rank and on several over gloo."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tests.support.checkpoints import write_checkpoint
from tests.support.rank_groups import run_grouped
from tests.support.runners import FedSequence, feed, make_model, make_runner, random_tokens
from tests.support.tiny_models import tiny_config
from torch import Tensor

from twinflow.parallel.ranks.base import RankGroup
from twinflow.runtime.models.config import LatentConfig, ModelConfig, RopeScaling

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

PROMPT, STEPS = 23, 64

_LATENT = LatentConfig(query_rank=48, kv_rank=64, nope_dim=32, rope_dim=16, value_dim=32)
_YARN = RopeScaling(
    kind="yarn", factor=40.0, original_max_position=64, mscale=1.0, mscale_all_dim=1.0
)


def config_of(architecture: str, **changes: Any) -> ModelConfig:
    """DeepSeek in small: a dense layer, then two with eight experts."""
    config = tiny_config(
        architecture,
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_heads=8,
        head_dim=16,
        max_position=2560,
        latent=_LATENT,
        rope_scaling=_YARN,
    )
    return replace(config, **changes)


CONFIGS = {
    "V2-Lite": config_of(
        "DeepseekV2ForCausalLM",
        latent=replace(_LATENT, query_rank=None),
        rope_scaling=replace(_YARN, mscale=0.707, mscale_all_dim=0.707),
    ),
    "V2": config_of("DeepseekV2ForCausalLM", rope_scaling=None),
    "V3": config_of("DeepseekV3ForCausalLM"),
    "V3, plain rope, no compressed query": config_of(
        "DeepseekV3ForCausalLM", rope_scaling=None, latent=replace(_LATENT, query_rank=None)
    ),
}


@dataclass
class Reference:
    """What transformers makes of a checkpoint: tokens and the logits at each of them."""

    config: ModelConfig
    tokens: list[int]
    logits: Tensor


@pytest.fixture(scope="module", params=CONFIGS)
def greedy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """64 tokens after a prompt, each the most probable one."""
    config = CONFIGS[request.param]
    directory = write_checkpoint(tmp_path_factory.mktemp("model"), config)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    tokens = random_tokens(PROMPT, config.vocab_size, seed=11)
    with torch.no_grad():
        for _ in range(STEPS):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        logits: Tensor = model(torch.tensor([tokens])).logits[0]
    assert logits.std() > 0.3, "a flat model would agree with anything"
    return Reference(config, tokens, logits)


@dataclass
class Greedy:
    """What every rank does: continue a prompt, the prompt in two pieces."""

    config: ModelConfig
    prompt: list[int]

    def __call__(self, ranks: RankGroup) -> FedSequence:
        runner = make_runner(make_model(self.config, ranks=ranks))
        tokens = list(self.prompt)
        sequence = FedSequence(tokens, list(range(1, 8)), prompt_tokens=PROMPT)
        feed(runner, [(sequence, PROMPT - 5)])
        feed(runner, [(sequence, 5)])
        for _ in range(STEPS):
            tokens.append(int(sequence.logits[len(tokens) - 1].argmax()))
            feed(runner, [(sequence, 1)])
        return sequence


@pytest.mark.parametrize("size", [1, 2, 4])
def test_greedy_tokens_and_logits_are_those_of_transformers(greedy: Reference, size: int) -> None:
    config, expected = greedy.config, greedy.logits
    for sequence in run_grouped(size, Greedy(config, greedy.tokens[:PROMPT])):
        assert sequence.token_ids == greedy.tokens
        for position, row in sequence.logits.items():
            error = (row - expected[position]).abs().max()
            assert error < 1e-5, f"logits at {position}"
