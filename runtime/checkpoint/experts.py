"""The mixture of experts that `config.json` describes, for the families that have one.

Mixtral, Qwen3-MoE, DeepSeek-V2 and DeepSeek-V3 (Kimi-K2 is one) name and choose differently; here
all of them become one `MoEConfig`. Routing itself is the model's business.
"""

from collections.abc import Callable

from twinflow.runtime.checkpoint.json_file import JsonObject
from twinflow.runtime.models.config import MoEConfig

_MAX_EXPERTS = 1 << 14
_MAX_WIDTH = 1 << 20
_MAX_LAYERS = 1 << 10
_MAX_FACTOR = 1e6

ReadExperts = Callable[[JsonObject, int], MoEConfig | None]
"""From the top level of `config.json` and the number of layers; None if no layer has experts."""


def read_mixtral_experts(config: JsonObject, num_layers: int) -> MoEConfig | None:
    """Experts in every layer, as wide as a dense MLP."""
    num_experts, chosen = _counts(config, ("num_local_experts",))
    return MoEConfig(
        layers=tuple(range(num_layers)),
        num_experts=num_experts,
        experts_per_token=chosen,
        expert_size=config.required_integer("intermediate_size", 1, _MAX_WIDTH),
    )


def read_qwen_experts(config: JsonObject, num_layers: int) -> MoEConfig | None:
    """Experts in every `decoder_sparse_step`-th layer that `mlp_only_layers` does not list."""
    step = config.integer("decoder_sparse_step", 1, _MAX_LAYERS) or 1
    dense = _layer_list(config, "mlp_only_layers")
    layers = tuple(
        layer for layer in range(num_layers) if (layer + 1) % step == 0 and layer not in dense
    )
    if not layers:
        return None
    num_experts, chosen = _counts(config, ("num_experts", "num_local_experts"))
    return MoEConfig(
        layers=layers,
        num_experts=num_experts,
        experts_per_token=chosen,
        expert_size=config.required_integer("moe_intermediate_size", 1, _MAX_WIDTH),
        normalize=config.boolean("norm_topk_prob") or False,
    )


def read_deepseek_v2_experts(config: JsonObject, num_layers: int) -> MoEConfig | None:
    """Softmax scores, chosen greedily, of all experts or of those of the best groups."""
    layers = _deepseek_layers(config, num_layers)
    if not layers:
        return None
    _require(config, "scoring_func", "softmax")
    if config.boolean("norm_topk_prob"):
        raise config.error("norm_topk_prob", "false: DeepSeek-V2 does not normalise")
    num_experts, chosen = _counts(config, ("n_routed_experts",))
    method = config.text("topk_method") or "greedy"
    if method not in ("greedy", "group_limited_greedy"):
        raise config.error("topk_method", "greedy or group_limited_greedy")
    grouped = method == "group_limited_greedy"
    groups, top_groups = _groups(config, num_experts, chosen) if grouped else (1, 1)
    return MoEConfig(
        layers=layers,
        num_experts=num_experts,
        experts_per_token=chosen,
        expert_size=config.required_integer("moe_intermediate_size", 1, _MAX_WIDTH),
        shared_size=_shared_size(config),
        num_groups=groups,
        top_groups=top_groups,
        normalize=False,
        scaling_factor=_scaling_factor(config),
    )


def read_deepseek_v3_experts(config: JsonObject, num_layers: int) -> MoEConfig | None:
    """Sigmoid scores; a bias per expert decides the choice among those of the best groups."""
    layers = _deepseek_layers(config, num_layers)
    if not layers:
        return None
    _require(config, "scoring_func", "sigmoid")
    _require(config, "topk_method", "noaux_tc")
    num_experts, chosen = _counts(config, ("n_routed_experts",))
    groups, top_groups = _groups(config, num_experts, chosen)
    if groups > 1 and num_experts // groups < 2:
        raise config.error("n_group", f"at least two of {num_experts} experts in a group")
    normalize = config.boolean("norm_topk_prob")
    return MoEConfig(
        layers=layers,
        num_experts=num_experts,
        experts_per_token=chosen,
        expert_size=config.required_integer("moe_intermediate_size", 1, _MAX_WIDTH),
        shared_size=_shared_size(config),
        score="sigmoid",
        num_groups=groups,
        top_groups=top_groups,
        group_score="top2",
        correction_bias=True,
        normalize=True if normalize is None else normalize,
        scaling_factor=_scaling_factor(config),
    )


def _counts(config: JsonObject, names: tuple[str, ...]) -> tuple[int, int]:
    """Routed experts, under the first of `names` that is there, and how many a token gets."""
    key = next((name for name in names if name in config), names[0])
    num_experts = config.required_integer(key, 1, _MAX_EXPERTS)
    return num_experts, config.required_integer("num_experts_per_tok", 1, num_experts)


def _deepseek_layers(config: JsonObject, num_layers: int) -> tuple[int, ...]:
    if "n_routed_experts" not in config:
        return ()
    first = config.integer("first_k_dense_replace", 0, _MAX_LAYERS) or 0
    step = config.integer("moe_layer_freq", 1, _MAX_LAYERS) or 1
    return tuple(layer for layer in range(first, num_layers) if layer % step == 0)


def _groups(config: JsonObject, num_experts: int, chosen: int) -> tuple[int, int]:
    """How many groups there are, and from how many of them a token may choose."""
    groups = config.integer("n_group", 1, num_experts) or 1
    if num_experts % groups:
        raise config.error("n_group", f"a divisor of the number of experts ({num_experts})")
    top_groups = config.integer("topk_group", 1, groups) or groups
    if top_groups * (num_experts // groups) < chosen:
        raise config.error(
            "topk_group", f"groups of {num_experts // groups} experts that hold the {chosen} chosen"
        )
    return groups, top_groups


def _shared_size(config: JsonObject) -> int:
    count = config.integer("n_shared_experts", 0, _MAX_EXPERTS) or 0
    return count * config.required_integer("moe_intermediate_size", 1, _MAX_WIDTH)


def _scaling_factor(config: JsonObject) -> float:
    factor = config.number("routed_scaling_factor", 1e-6, _MAX_FACTOR)
    return 1.0 if factor is None else factor


def _require(config: JsonObject, key: str, value: str) -> None:
    if config.text(key) not in (None, value):
        raise config.error(key, repr(value))


def _layer_list(config: JsonObject, key: str) -> frozenset[int]:
    value = config.get(key)
    if value is None:
        return frozenset()
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise config.error(key, "a list of indices of layers")
    return frozenset(value)
