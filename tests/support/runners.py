"""Tiny model runners, and sequences that are fed to them in pieces."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from tests.support.tiny_models import tiny_state_dict
from torch import Tensor

from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.runtime.kernels.base import Kernels
from twinflow.runtime.kernels.plain import TorchKernels
from twinflow.runtime.kv.layouts import model_layout, rank_layout
from twinflow.runtime.model_runner import ModelRunner, SequenceRows
from twinflow.runtime.models.base import Model, Placement
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.registry import create_model

CPU = torch.device("cpu")


def fail_on_warning(message: str) -> None:
    """An `on_warning` for checkpoints that deserve none."""
    raise AssertionError(message)


def make_model(
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    ranks: RankGroup | None = None,
    expert_parallel: bool = False,
    latents: LatentPlan | None = None,
    kernels: Kernels | None = None,
) -> Model:
    """A tiny model with the weights of `tiny_state_dict`, or a rank's share of it."""
    placement = Placement(
        dtype=dtype,
        device=CPU,
        ranks=ranks or OneRank(),
        expert_parallel=expert_parallel,
        latents=latents,
        kernels=kernels or TorchKernels(),
    )
    return create_model(config, placement, tiny_state_dict(config).items(), fail_on_warning)


def make_runner(
    model: Model, num_blocks: int = 256, block_size: int = 16, max_num_tokens: int = 2048
) -> ModelRunner:
    """A runner with room for `num_blocks` blocks."""
    config, placement = model.config, model.placement.of_attention
    ranks = placement.ranks
    dtype = str(model.dtype).removeprefix("torch.")
    parts = min(ranks.size, config.num_kv_heads)
    sharing = placement.latent_plan.sharing if config.latent is not None else None
    scheme = None if sharing is None else sharing.scheme
    whole = model_layout(config, block_size, dtype, parts, scheme)
    held = rank_layout(whole, ranks, sharing)
    layout = replace(held, num_layers=placement.num_kv_layers(config.num_layers))
    return ModelRunner(model, layout, num_blocks, max_num_tokens, CPU)


@dataclass
class FedSequence:
    """A token sequence and how much of it a runner has seen."""

    token_ids: Sequence[int]
    block_ids: Sequence[int]
    position: int = 0
    prompt_tokens: int = 0
    logits: dict[int, Tensor] = field(default_factory=dict)

    @property
    def remaining(self) -> int:
        """Tokens not fed yet."""
        return len(self.token_ids) - self.position

    def next_rows(self, count: int) -> SequenceRows:
        """The next `count` tokens, logits of the last one wanted."""
        token_ids = self.token_ids[self.position : self.position + count]
        return SequenceRows(
            token_ids, self.position, self.block_ids, samples=True, prompt_tokens=self.prompt_tokens
        )


def feed(runner: ModelRunner, step: Sequence[tuple[FedSequence, int]]) -> None:
    """One step: some next tokens of some sequences; notes their logits by position."""
    logits = runner.forward([sequence.next_rows(count) for sequence, count in step])
    for (sequence, count), row in zip(step, logits, strict=True):
        sequence.position += count
        sequence.logits[sequence.position - 1] = row.clone()


def pages(runner: ModelRunner, sequence: FedSequence) -> Tensor:
    """A copy of the blocks of a sequence."""
    return runner.kv_cache.data[list(sequence.block_ids)].clone()


def random_tokens(count: int, vocab_size: int, seed: int) -> list[int]:
    """Tokens drawn from the whole vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = torch.randint(0, vocab_size, (count,), generator=generator).tolist()
    return tokens
