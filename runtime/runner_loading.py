"""Loads the weights of a rank and allocates its KV memory."""

from collections.abc import Callable

import structlog

from twinflow.parallel.ranks.base import RankGroup
from twinflow.runtime.engine_plan import EnginePlan
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.models.registry import create_model

# Told how far loading is: what, bytes done, bytes in all.
LoadProgress = Callable[[str, int, int], None]


def load_runner(
    plan: EnginePlan, ranks: RankGroup, progress: LoadProgress | None = None
) -> ModelRunner:
    """Load the weights of a rank and allocate its KV memory.

    Args:
        plan: for this rank.
        ranks: who computes the model together; connected.
        progress: told how far loading is.

    Raises:
        CheckpointError: the weights cannot be read.
        ConfigError: the transform of the latents was made from other weights.
        RankLost: another rank is gone.
    """

    def loaded(done: int, total: int) -> None:
        if progress is not None:
            progress("loading weights", done, total)

    placement = plan.placement(ranks)
    model = create_model(
        plan.model,
        placement,
        plan.checkpoint.tensors(loaded),
        on_warning=lambda text: structlog.get_logger().warning(text),
    )
    if plan.latents is not None:
        plan.latents.check_model(plan.checkpoint.fingerprint)
    config = plan.config
    runner = ModelRunner(
        model,
        plan.rank_layout,
        config.num_blocks,
        config.max_num_batched_tokens,
        placement.device,
    )
    if not runner.batch_invariant:
        structlog.get_logger().warning(
            "the matrix products of this machine are not batch-invariant in this dtype: near ties "
            "may fall differently from run to run",
            dtype=plan.layout.dtype,
        )
    return runner
