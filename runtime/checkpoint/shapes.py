"""The tensors that a model of the Llama family needs, under their Hugging Face names.

Used to refuse a checkpoint before its weights are read. It does not load anything.
"""

from collections.abc import Mapping
from pathlib import Path

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.json_file import shown
from twinflow.runtime.checkpoint.shards import listing
from twinflow.runtime.models.config import ModelConfig

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(config: ModelConfig) -> Shapes:
    """Shape of every tensor by name, [out, in] for projections.

    A model with tied embeddings has no `lm_head.weight`.
    """
    embedding = (config.vocab_size, config.hidden_size)
    shapes: Shapes = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": (config.hidden_size,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = embedding
    layer = _layer_shapes(config)
    for index in range(config.num_layers):
        shapes.update({f"model.layers.{index}.{name}": shape for name, shape in layer.items()})
    return shapes


def check_shapes(
    directory: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """Names in `found` that nobody expects, sorted.

    Raises:
        CheckpointError: tensors are missing (all are listed), or one has another shape.
    """
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise CheckpointError(
            f"{directory}: {len(missing)} of {len(expected)} tensors are missing: "
            f"{listing(missing)}"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(
                f"{directory}: tensor {shown(name)}: found the shape {list(found[name])}, "
                f"expected {list(shape)} from config.json"
            )
    return tuple(sorted(found.keys() - expected.keys()))


def _layer_shapes(config: ModelConfig) -> Shapes:
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: Shapes = {"input_layernorm.weight": (hidden,)}
    shapes["post_attention_layernorm.weight"] = (hidden,)
    for name, rows in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
        shapes |= _projection(f"self_attn.{name}", rows, hidden, config.attention_bias)
    shapes |= _projection("self_attn.o_proj", hidden, query, config.attention_output_bias)
    shapes |= _projection("mlp.gate_proj", inner, hidden, config.mlp_bias)
    shapes |= _projection("mlp.up_proj", inner, hidden, config.mlp_bias)
    shapes |= _projection("mlp.down_proj", hidden, inner, config.mlp_bias)
    if config.qk_norm:
        shapes["self_attn.q_norm.weight"] = (config.head_dim,)
        shapes["self_attn.k_norm.weight"] = (config.head_dim,)
    return shapes


def _projection(name: str, rows: int, columns: int, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (rows, columns)}
    if bias:
        shapes[f"{name}.bias"] = (rows,)
    return shapes
