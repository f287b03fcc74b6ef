"""config.json of models with experts and of models with latent attention."""

import json
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import transformers
from tests.support.checkpoints import REMOVED, assert_one_line, edit_json, small_config, write_json
from tests.support.tiny_models import hf_config_json

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.models.config import LatentConfig, MoEConfig, RopeScaling
from twinflow.runtime.models.decoder import Decoder
from twinflow.runtime.models.registry import model_type

# As published with Kimi-K2-Instruct; keys that only training or transformers' code reads left out.
KIMI_K2: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModel": "modeling_deepseek.DeepseekV3Model",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
    },
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 131072,
    "model_type": "kimi_k2",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 384,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 163840,
}


def refused(directory: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_model_config(directory)
    return caught.value


@pytest.mark.parametrize("architecture", ["DeepseekV3ForCausalLM", "KimiK2ForCausalLM"])
def test_kimi_k2_is_read_and_its_code_left_alone(tmp_path: Path, architecture: str) -> None:
    marker = tmp_path / "executed"
    for name in ("configuration_deepseek.py", "modeling_deepseek.py"):
        (tmp_path / name).write_text(f"open({str(marker)!r}, 'w').close()\n")
    write_json(tmp_path / "config.json", KIMI_K2 | {"architectures": [architecture]})
    with structlog.testing.capture_logs() as logs:
        config = load_model_config(tmp_path)
    assert [log["event"] for log in logs] == ["the model's own code is not used"]
    assert not marker.exists()
    assert model_type(config) is Decoder
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (61, 64, 1)
    assert (config.head_dim, config.max_position, config.rope_theta) == (64, 131072, 50000.0)
    assert config.latent == LatentConfig(
        query_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
    )
    assert config.moe == MoEConfig(
        layers=tuple(range(1, 61)),
        num_experts=384,
        experts_per_token=8,
        expert_size=2048,
        shared_size=2048,
        score="sigmoid",
        group_score="top2",
        correction_bias=True,
        scaling_factor=2.827,
    )
    assert config.rope_scaling == RopeScaling(
        kind="yarn",
        factor=32.0,
        original_max_position=4096,
        beta_fast=1.0,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
    )


TRANSFORMERS: list[tuple[type[Any], dict[str, Any], dict[str, Any]]] = [
    (
        transformers.MixtralConfig,
        {"num_local_experts": 4, "intermediate_size": 96},
        {"layers": (0, 1, 2, 3), "num_experts": 4, "experts_per_token": 2, "expert_size": 96},
    ),
    (
        transformers.Qwen3MoeConfig,
        {"num_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
        | {"decoder_sparse_step": 2, "mlp_only_layers": [1]},
        {"layers": (3,), "num_experts": 4, "experts_per_token": 3, "expert_size": 24}
        | {"normalize": False},
    ),
    (
        transformers.DeepseekV2Config,
        {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        | {"first_k_dense_replace": 1, "topk_method": "group_limited_greedy"}
        | {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0, "q_lora_rank": None},
        {"layers": (1, 2, 3), "num_experts": 8, "experts_per_token": 2, "expert_size": 24}
        | {"shared_size": 48, "num_groups": 4, "top_groups": 2, "normalize": False}
        | {"scaling_factor": 16.0},
    ),
    (
        transformers.DeepseekV3Config,
        {"n_routed_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 24}
        | {"n_group": 2, "topk_group": 1},
        {"layers": (3,), "num_experts": 8, "experts_per_token": 4, "expert_size": 24}
        | {"shared_size": 24, "num_groups": 2, "top_groups": 1, "group_score": "top2"}
        | {"score": "sigmoid", "correction_bias": True, "scaling_factor": 2.5},
    ),
]


@pytest.mark.parametrize(("kind", "keys", "expected"), TRANSFORMERS, ids=str)
def test_reads_what_transformers_writes(
    tmp_path: Path, kind: type[Any], keys: dict[str, Any], expected: dict[str, Any]
) -> None:
    name = kind.__name__.replace("Config", "ForCausalLM")
    written = kind(
        architectures=[name], vocab_size=300, num_hidden_layers=4, eos_token_id=2, **keys
    )
    written.save_pretrained(tmp_path)
    config = load_model_config(tmp_path)
    assert config.moe == MoEConfig(**expected)
    assert (config.latent is not None) == name.startswith("Deepseek")
    assert config.draft_layers == (1 if name == "DeepseekV3ForCausalLM" else 0)


def test_defaults_of_mixtral(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", hf_config_json(small_config("MixtralForCausalLM")))
    edit_json(tmp_path / "config.json", rope_theta=REMOVED)
    assert load_model_config(tmp_path).rope_theta == 1e6


def test_a_model_whose_layers_are_all_dense_has_no_experts(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", hf_config_json(small_config("Qwen3MoeForCausalLM")))
    edit_json(tmp_path / "config.json", mlp_only_layers=[0, 1, 2])
    assert load_model_config(tmp_path).moe is None
    write_json(tmp_path / "config.json", hf_config_json(small_config("DeepseekV2ForCausalLM")))
    edit_json(tmp_path / "config.json", n_routed_experts=None)
    assert load_model_config(tmp_path).moe is None


BAD_VALUES: list[tuple[str, dict[str, Any], str]] = [
    ("Mixtral", {"num_local_experts": None}, "num_local_experts: found null"),
    ("Mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok: found 9, expected an integer"),
    ("Mixtral", {"sliding_window": 16}, "sliding_window: found 16"),
    ("Qwen3Moe", {"num_experts": 0}, "num_experts: found 0"),
    ("Qwen3Moe", {"mlp_only_layers": ["0"]}, "mlp_only_layers: found ['0']"),
    ("Qwen3Moe", {"decoder_sparse_step": 0}, "decoder_sparse_step: found 0"),
    ("Qwen3Moe", {"auto_map": {"AutoModel": "a.B"}}, "auto_map"),
    ("DeepseekV2", {"norm_topk_prob": True}, "norm_topk_prob: found true, expected false"),
    ("DeepseekV2", {"scoring_func": "sigmoid"}, "scoring_func: found 'sigmoid'"),
    ("DeepseekV2", {"topk_method": "noaux_tc"}, "topk_method: found 'noaux_tc'"),
    ("DeepseekV2", {"attention_bias": True}, "attention_bias: found true"),
    ("DeepseekV2", {"qk_rope_head_dim": 7}, "qk_rope_head_dim: found 7, expected an even"),
    ("DeepseekV2", {"kv_lora_rank": None}, "kv_lora_rank: found null"),
    ("DeepseekV3", {"n_group": 3}, "n_group: found 3, expected a divisor"),
    ("DeepseekV3", {"n_group": 8, "topk_group": 8}, "n_group: found 8, expected at least two"),
    ("DeepseekV3", {"topk_group": 1}, "topk_group: found 1, expected groups of 2 experts"),
    ("DeepseekV3", {"scoring_func": "softmax"}, "scoring_func: found 'softmax'"),
    ("DeepseekV3", {"rope_interleave": False}, "rope_interleave: found false"),
    ("DeepseekV3", {"routed_scaling_factor": "x"}, "routed_scaling_factor: found 'x'"),
]


@pytest.mark.parametrize(("family", "changes", "message"), BAD_VALUES, ids=str)
def test_a_bad_value_names_file_and_key(
    tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    write_json(tmp_path / "config.json", hf_config_json(small_config(f"{family}ForCausalLM")))
    edit_json(tmp_path / "config.json", **changes)
    assert_one_line(refused(tmp_path), tmp_path / "config.json", message)


@pytest.mark.parametrize("family", ["Qwen3Moe", "DeepseekV2", "DeepseekV3"])
def test_every_key_survives_random_values(tmp_path: Path, family: str) -> None:
    """Whatever one key holds, the answer is a config or a CheckpointError of one line."""
    values: tuple[Any, ...] = (True, -1, 0, 3, 2**70, 1.5, "x\ny", [], [[1]], {}, {"a": {}})
    original = hf_config_json(small_config(f"{family}ForCausalLM"))
    path = tmp_path / "config.json"
    errors = 0
    for key in (*original, "quantization_config", "rope_interleave"):
        for value in values:
            path.write_text(json.dumps(original | {key: value}), encoding="utf-8")
            try:
                load_model_config(tmp_path)
            except CheckpointError as error:
                assert_one_line(error, path)
                errors += 1
    assert errors > 100
