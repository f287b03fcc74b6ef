"""All layers of a model in one call of the compiled kernels; `cpp/layers.cpp` runs them.

One call per operation, some 300 in a step of 30 layers, costs a quarter of the time of a step with
one row, and memory between operations is taken and given back as often. Here a step is one call,
and the memory is the attention kernel's, which belongs to one runner as this does not.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from twinflow.runtime.attention.base import Attention
from twinflow.runtime.kernels.base import LayerStack, StackedLayer
from twinflow.runtime.kernels.library import DecoderLayer, Heads, KernelLibrary
from twinflow.runtime.kernels.native_attention import NativeAttention
from twinflow.runtime.kernels.native_linear import NativeLinear


class NativeStack(LayerStack):
    """See the module.

    Args:
        layers: whose linear layers are native.
        eps: of all norms.
        library: the compiled kernels.
    """

    def __init__(self, layers: Sequence[StackedLayer], eps: float, library: KernelLibrary) -> None:
        self._kept = tuple(layers)
        self._eps = eps
        self._run = library.layers
        self._layers = (DecoderLayer * len(layers))(*map(_described, layers))
        self._inner = layers[0].down.in_features

    @classmethod
    def of(
        cls, layers: Sequence[StackedLayer], eps: float, library: KernelLibrary
    ) -> "NativeStack | None":
        """The layers as a stack; None if one of them has a linear layer of another form."""
        linears = (
            linear
            for layer in layers
            for linear in (layer.query_key_value, layer.output, layer.gate_up, layer.down)
        )
        if not layers or not all(isinstance(linear, NativeLinear) for linear in linears):
            return None
        return cls(layers, eps, library)

    def takes(self, hidden: Tensor, attention: Attention) -> bool:
        """Float32 without padding, and native attention that writes each row to one place."""
        return (
            hidden.dtype is torch.float32
            and isinstance(attention, NativeAttention)
            and attention.num_rows == len(hidden)
            and attention.writes_once
        )

    def run(self, hidden: Tensor, cos: Tensor, attention: Attention, layers: range) -> None:
        """See the base class."""
        native = NativeAttention.of(attention)
        step, (count, width) = native.stack_step(layers.start), hidden.shape
        shape = step.shape.contents
        query_heads, kv_heads, head_dim = shape.query_heads, shape.kv_heads, shape.head_dim
        sizes = (
            count * (query_heads + 2 * kv_heads) * head_dim,
            count * width,
            count * width,
            count * query_heads * head_dim,
            count * 2 * self._inner,
            count * self._inner,
        )
        heads, step.normed, step.delta, step.attended, step.gate_up, step.gated = native.memory(
            sizes
        )
        step.hidden, step.num_rows, step.width = hidden.data_ptr(), count, width
        step.inner, step.eps = self._inner, self._eps
        step.heads = ctypes.pointer(
            Heads(
                rows=heads,
                num_rows=count,
                query_heads=query_heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                table=cos.data_ptr(),  # the sines are behind them
                eps=self._eps,
                query_factor=head_dim**-0.5,
            )
        )
        self._run(ctypes.pointer(self._layers[layers.start]), len(layers), step)


def _described(layer: StackedLayer) -> DecoderLayer:
    return DecoderLayer(
        attention_norm=layer.attention_norm.data_ptr(),
        query_key_value=_pointer(layer.query_key_value),
        head_norm=None if layer.head_norm is None else layer.head_norm.data_ptr(),
        output=_pointer(layer.output),
        mlp_norm=layer.mlp_norm.data_ptr(),
        gate_up=_pointer(layer.gate_up),
        down=_pointer(layer.down),
    )


def _pointer(linear: object) -> object:
    if not isinstance(linear, NativeLinear):
        raise TypeError(f"a {type(linear).__name__} is no native linear layer")
    return ctypes.pointer(linear.layer)
