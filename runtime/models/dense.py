"""The gated MLP: `down(silu(gate(rows)) * up(rows))` (SwiGLU, arXiv 2002.05202).

gate and up are one matrix product. Without experts; those are in `experts`.
"""

from torch import Tensor

from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.blocks import LayerNames, LayerWeights, MLPBlock
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.expert_traffic import ExpertCounter
from twinflow.runtime.models.linear import Linear
from twinflow.runtime.models.sharding import inner_cut
from twinflow.runtime.models.weights import Parameter


class DenseMLP(MLPBlock):
    """An MLP that every row passes."""

    def __init__(self, config: ModelConfig, weights: LayerWeights) -> None:
        self._ranks = weights.placement.ranks
        self._kernels = weights.placement.kernels
        self._gate_up = weights.linear("gate_up")
        self._down = weights.linear("down")

    @staticmethod
    def parameters(config: ModelConfig, layer: int, placement: Placement) -> list[Parameter]:
        """See the base class."""
        names, hidden = LayerNames(layer), config.hidden_size
        inner = inner_cut(config.intermediate_size, placement.ranks, "intermediate_size")
        rows = {"mlp.gate_proj": inner, "mlp.up_proj": inner}
        return [
            *names.outputs("gate_up", rows, hidden, config.mlp_bias),
            *names.inputs("down", "mlp.down_proj", hidden, inner, config.mlp_bias),
        ]

    @property
    def weights(self) -> tuple[Linear, Linear]:
        """To gate and up, and down: what a layer stack needs."""
        return self._gate_up, self._down

    def __call__(self, rows: Tensor, num_rows: int, counter: ExpertCounter | None = None) -> Tensor:
        """See the base class."""
        inner = self._kernels.gated_silu(self._gate_up(rows))
        return self._ranks.all_reduce(self._down(inner))
