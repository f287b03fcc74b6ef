"""Loads the small model that drafts for a model that is served.

How models are loaded is `runtime.runner_loading`'s.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from twinflow.protos.errors import ConfigError
from twinflow.runtime.latent_setup import LatentOptions
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.drafters.draft_model import DraftModelDrafter

if TYPE_CHECKING:
    from twinflow.runtime.engine_plan import EngineOptions, EnginePlan


def load_drafter(
    config: SpeculativeConfig,
    target: "EnginePlan",
    load: Callable[["EngineOptions"], tuple[ModelRunner, ModelConfig]],
) -> DraftModelDrafter:
    """A drafter with a model, and KV blocks for as many tokens as the target has.

    Args:
        config: names the model.
        target: the engine that it drafts for.
        load: loads a model in this process.

    Raises:
        CheckpointError: its directory cannot be served.
        ConfigError: it knows other tokens than the target, or shorter contexts.
    """
    limits = target.config
    options = replace(
        target.options,
        model=Path(config.model or ""),
        dtype=target.layout.dtype,
        max_model_len=limits.max_model_len,
        num_kv_blocks=-(-limits.num_blocks * limits.entry_tokens // limits.block_size),
        expert_parallel=False,
        kv_parts=1,
        latents=LatentOptions(),
        speculative_config=None,
    )
    runner, model = load(options)
    if model.vocab_size != target.model.vocab_size:
        raise ConfigError(
            f"--speculative-config: {config.model} knows {model.vocab_size} tokens, the model that "
            f"is served {target.model.vocab_size}: draft with a model of the same family"
        )
    return DraftModelDrafter(
        runner,
        Sampler(model.vocab_size, options.device),
        vocab_size=model.vocab_size,
        max_rows=limits.max_num_batched_tokens,
    )
