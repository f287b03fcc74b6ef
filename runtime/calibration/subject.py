"""The model that is calibrated, and runners for its ranks.

Made of what serving is made of: the checkpoint, the model and the kernel are the same. What is not
here is an engine: windows of text need no scheduling.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.latent.plan import LatentPlan
from twinflow.protos.errors import ConfigError
from twinflow.runtime.calibration.options import CalibrationOptions
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.checkpoint.tokenizer_check import check_tokenizer
from twinflow.runtime.checkpoint.weights import Checkpoint, Progress
from twinflow.runtime.device_choice import check_device, resolve_dtype
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.kv.layouts import model_layout, rank_layout
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.models.base import Model, Placement
from twinflow.runtime.models.config import LatentConfig, ModelConfig
from twinflow.runtime.models.registry import checkpoint_shapes, create_model

BLOCK_SIZE = 16

Watch = Callable[[Iterable[tuple[str, Tensor]]], Iterable[tuple[str, Tensor]]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with latent attention.

    Attributes:
        config: its shape.
        latent: of its attention.
        checkpoint: its weights.
        dtype: name of the dtype that it is computed in.
        device: where it is computed.
        window: most tokens of a sequence.
    """

    config: ModelConfig
    latent: LatentConfig
    checkpoint: Checkpoint
    dtype: str
    device: torch.device
    window: int

    @classmethod
    def open(cls, options: CalibrationOptions) -> "Subject":
        """Read everything but the weights.

        Raises:
            CheckpointError: the directory cannot be served.
            ConfigError: the model has no latent attention, or an option does not fit it.
        """
        config = load_model_config(options.model)
        if config.latent is None:
            raise ConfigError(
                f"{options.model}: {config.architecture} has no latent attention; only models of "
                f"DeepSeek-V2's and V3's shape can be calibrated for tpla"
            )
        if options.window > config.max_position:
            raise ConfigError(
                f"--window {options.window}: the model reads at most {config.max_position} tokens"
            )
        check_tokenizer(options.model, config)
        check_device(options.device)
        checkpoint = Checkpoint.open(options.model)
        checkpoint.check_shapes(checkpoint_shapes(config))
        dtype = resolve_dtype(options.dtype, config.dtype, options.device)
        device = torch.device(options.device)
        return cls(config, config.latent, checkpoint, dtype, device, options.window)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def blocks(self) -> list[int]:
        """The block table of every sequence: there is one at a time."""
        return list(range(1, 1 - -self.window // BLOCK_SIZE))

    def load(
        self, plan: LatentPlan, progress: Progress | None = None, watch: Watch | None = None
    ) -> Model:
        """The model, or one rank's share of it.

        Args:
            plan: the rank's part of latent attention.
            progress: told the bytes read, and those in all.
            watch: sees the tensors of the checkpoint on their way.
        """
        placement = Placement(
            dtype=self.torch_dtype,
            device=self.device,
            ranks=plan.sharing.ranks,
            latents=plan,
        )
        tensors: Iterable[tuple[str, Tensor]] = self.checkpoint.tensors(progress)
        if watch is not None:
            tensors = watch(tensors)
        return create_model(self.config, placement, tensors, structlog.get_logger().debug)

    def cache(self, plan: LatentPlan) -> KVCache:
        """Blocks for one sequence."""
        return KVCache(self._layout(plan), len(self.blocks) + 1, self.device)

    def runner(self, plan: LatentPlan, progress: Progress | None = None) -> ModelRunner:
        """The model, or one rank's share of it, with blocks for one sequence."""
        model, num_blocks = self.load(plan, progress), len(self.blocks) + 1
        return ModelRunner(model, self._layout(plan), num_blocks, self.window, self.device)

    def _layout(self, plan: LatentPlan) -> KVLayout:
        sharing = plan.sharing
        whole = model_layout(self.config, BLOCK_SIZE, self.dtype, scheme=sharing.scheme)
        return rank_layout(whole, sharing.ranks, sharing)
