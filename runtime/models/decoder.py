"""The dense decoder that Llama, Mistral, Qwen2 and Qwen3 have in common.

    x += output(attention(rotate(norm(q k v(norm(x))))))
    x += down(silu(gate(norm(x))) * up(norm(x)))

The members differ in biases and in norms on the heads of q and k, which `ModelConfig` states;
there is no code for a particular member. q, k and v are one matrix product, gate and up another.
Norm statistics, rotary embedding, attention and logits are float32 for any dtype of the weights.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from twinflow.runtime.attention.base import Attention
from twinflow.runtime.models.base import ForwardPass, Model, RowBatch
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.linear import Linear, LinearFactory
from twinflow.runtime.models.rope import RotaryTable, rotate
from twinflow.runtime.models.weights import Parameter, load_parameters
from twinflow.runtime.row_tile import RowTile


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Weights of one layer.

    Attributes:
        attention_norm: [hidden] before attention.
        query_key_value: hidden to [num_heads + 2 * num_kv_heads] heads.
        head_norm: [num_heads + num_kv_heads, head_dim] on the heads of q and k, if any.
        output: heads to hidden.
        mlp_norm: [hidden] before the MLP.
        gate_up: hidden to twice the intermediate size.
        down: intermediate size to hidden.
    """

    attention_norm: Tensor
    query_key_value: Linear
    head_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class Decoder(Model):
    """A dense decoder with its weights; made by `Decoder.load`."""

    def __init__(
        self, config: ModelConfig, parameters: dict[str, Tensor], dtype: torch.dtype
    ) -> None:
        self.embedding = parameters.pop("embedding")
        super().__init__(config, dtype, self.embedding.device)
        linears = LinearFactory()
        self.layers = [
            _take_layer(config, parameters, linears, index) for index in range(config.num_layers)
        ]
        self.final_norm = parameters.pop("final_norm")
        self.head = linears.create(
            self.embedding if config.tie_word_embeddings else parameters.pop("head")
        )
        self._row_tile = linears.row_tile
        self.rotary = RotaryTable(config, self.device)

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        weights: Iterable[tuple[str, Tensor]],
        dtype: torch.dtype,
        device: torch.device,
        on_warning: Callable[[str], None],
    ) -> "Decoder":
        """Build the model from named tensors; see `load_parameters`."""
        parameters = load_parameters(decoder_parameters(config), weights, dtype, device, on_warning)
        return cls(config, parameters, dtype)

    @property
    def row_tile(self) -> RowTile:
        """See the base class."""
        return self._row_tile

    def begin(self, batch: RowBatch, attention: Attention) -> ForwardPass:
        """See the base class."""
        return _DecoderPass(self, batch, attention)


def decoder_parameters(config: ModelConfig) -> list[Parameter]:
    """Every parameter of a decoder, under the names of Hugging Face checkpoints."""
    hidden = config.hidden_size
    parameters = [
        Parameter("embedding", (("model.embed_tokens.weight", config.vocab_size),), hidden),
        Parameter("final_norm", (("model.norm.weight", hidden),)),
    ]
    if not config.tie_word_embeddings:
        parameters.append(Parameter("head", (("lm_head.weight", config.vocab_size),), hidden))
    for index in range(config.num_layers):
        parameters += _layer_parameters(config, index)
    return parameters


def _layer_parameters(config: ModelConfig, index: int) -> list[Parameter]:
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim
    source = f"model.layers.{index}."

    def vector(key: str, name: str, size: int) -> Parameter:
        return Parameter(f"{index}.{key}", ((f"{source}{name}.weight", size),))

    def linear(key: str, rows_by_name: dict[str, int], columns: int, bias: bool) -> list[Parameter]:
        def stacked(kind: str) -> tuple[tuple[str, int], ...]:
            return tuple((f"{source}{name}.{kind}", rows) for name, rows in rows_by_name.items())

        matrix = Parameter(f"{index}.{key}.weight", stacked("weight"), columns)
        return [matrix, Parameter(f"{index}.{key}.bias", stacked("bias"))] if bias else [matrix]

    qkv = {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
    gate_up = {"mlp.gate_proj": inner, "mlp.up_proj": inner}
    parameters = [
        vector("attention_norm", "input_layernorm", hidden),
        *linear("query_key_value", qkv, hidden, config.attention_bias),
        *linear("output", {"self_attn.o_proj": hidden}, queries, config.attention_output_bias),
        vector("mlp_norm", "post_attention_layernorm", hidden),
        *linear("gate_up", gate_up, hidden, config.mlp_bias),
        *linear("down", {"mlp.down_proj": hidden}, inner, config.mlp_bias),
    ]
    if config.qk_norm:
        parameters.append(vector("query_norm", "self_attn.q_norm", dim))
        parameters.append(vector("key_norm", "self_attn.k_norm", dim))
    return parameters


def _take_layer(
    config: ModelConfig, parameters: dict[str, Tensor], linears: LinearFactory, index: int
) -> DecoderLayer:
    """Move a layer's parameters out of the dictionary, so that those that are packed are freed."""

    def linear(key: str) -> Linear:
        weight = parameters.pop(f"{index}.{key}.weight")
        return linears.create(weight, parameters.pop(f"{index}.{key}.bias", None))

    head_norm = None
    if config.qk_norm:
        query_norm = parameters.pop(f"{index}.query_norm").expand(config.num_heads, -1)
        key_norm = parameters.pop(f"{index}.key_norm").expand(config.num_kv_heads, -1)
        head_norm = torch.cat((query_norm, key_norm))
    return DecoderLayer(
        attention_norm=parameters.pop(f"{index}.attention_norm"),
        query_key_value=linear("query_key_value"),
        head_norm=head_norm,
        output=linear("output"),
        mlp_norm=parameters.pop(f"{index}.mlp_norm"),
        gate_up=linear("gate_up"),
        down=linear("down"),
    )


class _DecoderPass(ForwardPass):
    def __init__(self, model: Decoder, batch: RowBatch, attention: Attention) -> None:
        self._model = model
        self._attention = attention
        self._hidden = model.embedding.index_select(0, batch.token_ids)
        self._cos, self._sin = model.rotary.lookup(batch.positions, batch.end_position)

    def run_layers(self, first: int, end: int) -> None:
        hidden, eps = self._hidden, self._model.config.rms_norm_eps
        for index in range(first, end):
            layer = self._model.layers[index]
            hidden += self._attend(index, layer, rms_norm(hidden, layer.attention_norm, eps))
            gate_up = layer.gate_up(rms_norm(hidden, layer.mlp_norm, eps))
            hidden += layer.down(gated_silu(gate_up))

    def logits(self, rows: Tensor) -> Tensor:
        model = self._model
        hidden = self._hidden.index_select(0, rows)
        return model.head(rms_norm(hidden, model.final_norm, model.config.rms_norm_eps)).float()

    def _attend(self, index: int, layer: DecoderLayer, rows: Tensor) -> Tensor:
        config = self._model.config
        rotary_heads = config.num_heads + config.num_kv_heads
        heads = layer.query_key_value(rows).view(len(rows), -1, config.head_dim)
        query_key = heads[:, :rotary_heads]
        if layer.head_norm is not None:
            query_key = rms_norm(query_key, layer.head_norm, config.rms_norm_eps)
        rotated = rotate(query_key, self._cos, self._sin)
        heads[:, config.num_heads : rotary_heads] = rotated[:, config.num_heads :]
        self._attention.write(index, heads[:, config.num_heads :])
        queries = rotated[:, : config.num_heads] * config.head_dim**-0.5
        attended = self._attention.attend(index, queries).view(len(rows), -1)
        return layer.output(attended.to(rows.dtype))


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rows / sqrt(mean(rows²) + eps) * weight` over the last dimension (arXiv 1910.07467).

    Args:
        rows: [..., width].
        weight: [width], or one for each of the last dimensions.
        eps: added to the mean.

    Returns:
        A new tensor like `rows`; the statistics are float32.
    """
    if weight.dim() == 1:
        return F.rms_norm(rows, weight.shape, weight, eps)
    return F.rms_norm(rows, weight.shape[-1:], eps=eps).mul_(weight)


def gated_silu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` (SwiGLU, arXiv 2002.05202).

    Args:
        gate_up: [rows, 2 * width], the gate first.

    Returns:
        A new [rows, width].
    """
    gate, up = gate_up.chunk(2, dim=-1)
    # Not torch's silu: it uses another exponential at the end of a vector register, so that an
    # element would depend on its place.
    sigmoid_inverse = gate.neg().exp_().add_(1.0)
    return torch.div(gate, sigmoid_inverse, out=sigmoid_inverse).mul_(up)
