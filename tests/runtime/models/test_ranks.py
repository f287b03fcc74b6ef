"""A model cut for several ranks computes what one rank computes, the same bits on all ranks."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from tests.support.runners import FedSequence, feed, make_model, make_runner, random_tokens
from tests.support.tiny_models import tiny_config
from torch import Tensor

from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.parallel.ranks.threads import run_ranks
from twinflow.protos.errors import ConfigError
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.weight_memory import weight_bytes

CPU = torch.device("cpu")
STEPS = [1, 40, 23, 1, 1]


def heads(kv_heads: int) -> ModelConfig:
    return tiny_config("Qwen3ForCausalLM", num_heads=8, num_kv_heads=kv_heads, head_dim=8)


@dataclass
class Job:
    """What every rank does: feed a random sequence in pieces."""

    config: ModelConfig
    expert_parallel: bool = False
    dtype: torch.dtype = torch.float32

    def __call__(self, ranks: RankGroup) -> Tensor:
        """Logits after each step, [steps, vocab]."""
        runner = make_runner(make_model(self.config, self.dtype, ranks, self.expert_parallel))
        assert runner.batch_invariant
        tokens = random_tokens(sum(STEPS), self.config.vocab_size, seed=5)
        sequence = FedSequence(tokens, list(range(1, 6)))
        for count in STEPS:
            feed(runner, [(sequence, count)])
        return torch.stack(list(sequence.logits.values()))


def assert_agree(job: Job, size: int) -> None:
    expected = job(OneRank())
    first, *others = run_ranks(size, job)
    assert first.shape == expected.shape
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
    for other in others:
        assert torch.equal(other, first)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("size", [2, 4])
def test_logits_are_those_of_one_rank(kv_heads: int, size: int) -> None:
    assert_agree(Job(heads(kv_heads)), size)


@pytest.mark.parametrize(
    "config",
    [
        tiny_config("Qwen2ForCausalLM"),
        tiny_config(attention_bias=True, attention_output_bias=True, mlp_bias=True),
        tiny_config(tie_word_embeddings=True, intermediate_size=77),
    ],
    ids=["biases on inputs", "all biases", "tied, uneven"],
)
def test_biases_and_tied_embeddings(config: ModelConfig) -> None:
    assert_agree(Job(config), 2)


def test_three_ranks_with_uneven_shares() -> None:
    assert_agree(Job(tiny_config(num_kv_heads=3)), 3)


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "Qwen3MoeForCausalLM"])
@pytest.mark.parametrize("expert_parallel", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_experts_are_cut_or_shared_out(architecture: str, expert_parallel: bool, size: int) -> None:
    config = tiny_config(architecture, num_heads=8, num_kv_heads=2, head_dim=8)
    assert_agree(Job(config, expert_parallel), size)


def test_more_ranks_than_tokens_of_the_last_share() -> None:
    """Five tokens for four ranks: shares of two, two, one and none."""
    config = tiny_config(vocab_size=5, num_heads=8, head_dim=8)
    assert_agree(Job(config), 4)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_each_rank_has_its_share_of_the_memory(size: int) -> None:
    config = tiny_config("MixtralForCausalLM", num_heads=8, num_kv_heads=4, head_dim=8)

    def share(expert_parallel: bool, ranks: RankGroup) -> int:
        placement = Placement(
            dtype=torch.float32, device=CPU, ranks=ranks, expert_parallel=expert_parallel
        )
        return weight_bytes(config, placement)

    whole = share(False, OneRank())
    for expert_parallel in (False, True):
        shares = run_ranks(size, partial(share, expert_parallel))
        assert len(set(shares)) == 1
        norms_and_routers = 4 * config.hidden_size * (2 * 3 + 1 + 3 * 8)
        padding = 2 * 4 * config.hidden_size * (-config.vocab_size % size)
        assert sum(shares) == whole + padding + (size - 1) * norms_and_routers


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({"num_heads": 6}, 4, "6 query heads and 2 key/value heads cannot be shared by 4 ranks"),
        ({"num_heads": 6, "num_kv_heads": 3}, 2, "3 key/value heads cannot be shared by 2 ranks"),
        ({"intermediate_size": 1}, 2, r"intermediate_size \(1\) cannot be cut for 2 ranks"),
    ],
)
def test_what_cannot_be_cut_is_refused(changes: dict[str, Any], size: int, message: str) -> None:
    config = tiny_config(**changes)
    with pytest.raises(ConfigError, match=message):
        run_ranks(size, lambda ranks: make_model(config, ranks=ranks))
