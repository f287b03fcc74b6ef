"""Models with experts compute what transformers computes, on one rank and on several over gloo."""

import importlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.checkpoints import write_checkpoint
from tests.support.expert_blocks import LAYER, moe_of, random_rows, run_block, with_experts
from tests.support.rank_groups import run_grouped
from tests.support.runners import FedSequence, feed, make_model, make_runner, random_tokens
from tests.support.tiny_models import hf_config_json, tiny_config, tiny_state_dict
from torch import Tensor

from twinflow.parallel.ranks.base import RankGroup
from twinflow.parallel.ranks.threads import run_ranks
from twinflow.runtime.models.config import ModelConfig

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

PROMPT, STEPS = 23, 64


def config_of(architecture: str) -> ModelConfig:
    """Two KV heads, so that four ranks share them; heads that four ranks can share."""
    config = tiny_config(architecture, num_heads=8, head_dim=8)
    normalize = architecture == "MixtralForCausalLM"  # the default of either
    return with_experts(config, normalize=normalize)


@pytest.fixture(scope="module", params=["MixtralForCausalLM", "Qwen3MoeForCausalLM"])
def greedy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelConfig, list[int], Tensor]:
    """What transformers makes of a checkpoint: tokens and the logits at each of them."""
    config = config_of(request.param)
    directory = write_checkpoint(tmp_path_factory.mktemp("model"), config)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = random_tokens(PROMPT, config.vocab_size, seed=11)
    with torch.no_grad():
        for _ in range(STEPS):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        logits: Tensor = model(torch.tensor([tokens])).logits[0]
    assert logits.std() > 0.3, "a flat model would agree with anything"
    return config, tokens, logits


@dataclass
class Greedy:
    """What every rank does: continue a prompt, the prompt in two pieces."""

    config: ModelConfig
    prompt: list[int]
    expert_parallel: bool = False

    def __call__(self, ranks: RankGroup) -> FedSequence:
        runner = make_runner(
            make_model(self.config, ranks=ranks, expert_parallel=self.expert_parallel)
        )
        tokens = list(self.prompt)
        sequence = FedSequence(tokens, list(range(1, 8)))
        feed(runner, [(sequence, PROMPT - 5)])
        feed(runner, [(sequence, 5)])
        for _ in range(STEPS):
            tokens.append(int(sequence.logits[len(tokens) - 1].argmax()))
            feed(runner, [(sequence, 1)])
        return sequence


@pytest.mark.parametrize(
    ("size", "expert_parallel"), [(1, False), (2, False), (4, False), (2, True), (4, True)]
)
def test_greedy_tokens_and_logits_are_those_of_transformers(
    greedy: tuple[ModelConfig, list[int], Tensor], size: int, expert_parallel: bool
) -> None:
    config, tokens, logits = greedy
    job = Greedy(config, tokens[:PROMPT], expert_parallel)
    for sequence in run_grouped(size, job):
        assert sequence.token_ids == tokens
        for position, row in sequence.logits.items():
            error = (row - logits[position]).abs().max()
            assert error < 1e-5, f"logits at {position}"


def test_bfloat16_logits_agree_within_rounding(tmp_path: Path) -> None:
    # A width that transformers' grouped product can compute in bfloat16.
    config = with_experts(config_of("Qwen3MoeForCausalLM"), expert_size=32)
    directory = write_checkpoint(tmp_path, config)
    tokens = random_tokens(60, config.vocab_size, seed=3)
    expected = []
    for dtype in (torch.float32, torch.bfloat16):
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        with torch.no_grad():
            expected.append(model(torch.tensor([tokens])).logits[0].float())
    exact, rounded = expected
    runner = make_runner(make_model(config, torch.bfloat16))
    sequence = FedSequence(tokens, list(range(1, 6)))
    while sequence.remaining:
        feed(runner, [(sequence, 1)])
    found = torch.stack([sequence.logits[position] for position in range(60)])
    # A rounded router sends some rows to other experts; the median row is not among them.
    ours, theirs = ((logits - exact).norm(dim=1).median() for logits in (found, rounded))
    assert ours < 1.5 * theirs


DEEPSEEK: list[tuple[str, dict[str, Any]]] = [
    ("DeepseekV2ForCausalLM", {}),
    ("DeepseekV2ForCausalLM", {"num_groups": 1, "top_groups": 1}),
    ("DeepseekV3ForCausalLM", {}),
    ("DeepseekV3ForCausalLM", {"num_groups": 1, "top_groups": 1}),
    ("DeepseekV3ForCausalLM", {"normalize": False, "num_groups": 2, "top_groups": 1}),
]


@pytest.mark.parametrize(("architecture", "changes"), DEEPSEEK, ids=str)
def test_experts_of_deepseek_are_those_of_transformers(
    architecture: str, changes: dict[str, Any]
) -> None:
    """The block alone: routing with groups, bias and scaling, and shared experts."""
    config = with_experts(tiny_config(architecture), **changes)
    rows = random_rows(200, config)
    with torch.no_grad():
        expected = deepseek_block(config)(rows[None])[0]
    for size, expert_parallel in ((1, False), (2, False), (3, True)):
        job = partial(run_block, config, rows, expert_parallel)
        for found in run_ranks(size, job):
            error = (found - expected).abs().max() / expected.abs().max()
            assert error < 1e-5


def deepseek_block(config: ModelConfig) -> Any:
    """transformers' block with the weights of the layer that `run_block` computes."""
    hf_config = transformers.AutoConfig.for_model(**hf_config_json(config))
    name = type(hf_config).__module__.replace("configuration", "modeling")
    modeling = importlib.import_module(name)
    block = getattr(modeling, "DeepseekV3MoE", None) or modeling.DeepseekV2Moe
    module = block(hf_config).eval()
    num_experts = moe_of(config).num_experts
    state = {
        name.removeprefix(f"model.layers.{LAYER}.mlp."): tensor
        for name, tensor in tiny_state_dict(config).items()
        if name.startswith(f"model.layers.{LAYER}.mlp.")
    }

    def stacked(kind: str) -> Tensor:
        names = [f"experts.{expert}.{kind}_proj.weight" for expert in range(num_experts)]
        return torch.stack([state.pop(name) for name in names])

    state["experts.gate_up_proj"] = torch.cat((stacked("gate"), stacked("up")), dim=1)
    state["experts.down_proj"] = stacked("down")
    module.load_state_dict(state)
    return module
