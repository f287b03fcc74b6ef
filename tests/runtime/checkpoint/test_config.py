"""config.json and generation_config.json: both spellings, every fault with its key (C8, C9)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from tests.support.checkpoints import REMOVED, assert_one_line, edit_json, small_config, write_json
from tests.support.tiny_models import (
    ARCHITECTURES,
    EXPERT_ARCHITECTURES,
    LATENT_ARCHITECTURES,
    ROPE_SCALINGS,
    hf_config_json,
)

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.models.config import ModelConfig, RopeScaling
from twinflow.runtime.models.rope import attention_scale, latent_softmax_scale


def write_config(directory: Path, config: ModelConfig, **changes: Any) -> Path:
    write_json(directory / "config.json", hf_config_json(config))
    edit_json(directory / "config.json", **changes)
    return directory


def refused(directory: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_model_config(directory)
    return caught.value


def as_transformers_5(content: dict[str, Any]) -> dict[str, Any]:
    """The same configuration in the spelling of transformers 5."""
    scaling = content.pop("rope_scaling") or {"rope_type": "default"}
    content["rope_parameters"] = scaling | {"rope_theta": content.pop("rope_theta")}
    content["dtype"] = content.pop("torch_dtype")
    return content


@pytest.mark.parametrize(
    "architecture", ARCHITECTURES + EXPERT_ARCHITECTURES + LATENT_ARCHITECTURES
)
@pytest.mark.parametrize("scaling", [None, *ROPE_SCALINGS.values()], ids=str)
def test_both_spellings_give_the_same_config(
    tmp_path: Path, architecture: str, scaling: RopeScaling | None
) -> None:
    config = small_config(
        architecture, rope_theta=5e5, rope_scaling=scaling, dtype="bfloat16", rms_norm_eps=1e-5
    )
    if scaling is not None and scaling.kind == "dynamic":
        config = small_config(
            architecture,
            rope_theta=5e5,
            rope_scaling=RopeScaling("dynamic", 2.0, original_max_position=config.max_position),
            dtype="bfloat16",
            rms_norm_eps=1e-5,
        )
    write_config(tmp_path, config)
    assert load_model_config(tmp_path) == config
    write_json(tmp_path / "config.json", as_transformers_5(hf_config_json(config)))
    assert load_model_config(tmp_path) == config


def test_reads_what_transformers_writes(tmp_path: Path) -> None:
    transformers.Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
        eos_token_id=[2, 3],
        dtype="bfloat16",
    ).save_pretrained(tmp_path)
    assert load_model_config(tmp_path) == ModelConfig(
        architecture="Qwen3ForCausalLM",
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        max_position=4096,
        rope_theta=1e6,
        rope_scaling=RopeScaling("linear", 2.0),
        qk_norm=True,
        dtype="bfloat16",
        eos_token_ids=(2, 3),
    )


def test_defaults_of_absent_keys(tmp_path: Path) -> None:
    write_config(
        tmp_path,
        small_config(),
        head_dim=REMOVED,
        num_key_value_heads=REMOVED,
        rope_theta=REMOVED,
        rope_scaling=REMOVED,
        torch_dtype=REMOVED,
        tie_word_embeddings=REMOVED,
        attention_bias=REMOVED,
        bos_token_id=None,
    )
    config = load_model_config(tmp_path)
    assert (config.num_kv_heads, config.head_dim) == (6, 48 // 6)
    assert (config.rope_theta, config.rope_scaling) == (10_000.0, None)
    assert (config.dtype, config.tie_word_embeddings) == ("float32", False)
    assert config.bos_token_id is None


def test_old_key_of_the_rope_kind(tmp_path: Path) -> None:
    write_config(tmp_path, small_config(), rope_scaling={"type": "linear", "factor": 4})
    assert load_model_config(tmp_path).rope_scaling == RopeScaling("linear", 4.0)


@pytest.mark.parametrize(
    ("mscale", "all_dim", "rotary", "softmax"),
    [
        (1.0, 1.0, 1.0, 1.36889**2),  # DeepSeek-V3
        (0.707, 0.707, 1.0, 1.26081**2),  # DeepSeek-V2
        (1.0, 0.0, 1.36889, 1.0),
        (0.5, 1.0, 1.18444 / 1.36889, 1.36889**2),
    ],
)
def test_scales_of_yarn(
    tmp_path: Path, mscale: float, all_dim: float, rotary: float, softmax: float
) -> None:
    scaling = {"type": "yarn", "factor": 40, "mscale": mscale, "mscale_all_dim": all_dim}
    write_config(tmp_path, small_config(), rope_scaling=scaling)
    read = load_model_config(tmp_path).rope_scaling
    assert attention_scale(read) == pytest.approx(rotary, rel=1e-5)
    assert latent_softmax_scale(read) == pytest.approx(softmax, rel=1e-5)


@pytest.mark.parametrize(
    ("original", "max_position", "expected"),
    [(512, 512, 2048), (128, 512, 512), (None, 512, 2048)],
)
def test_yarn_context_is_the_scaled_one(
    tmp_path: Path, original: int | None, max_position: int, expected: int
) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": original}
    write_config(tmp_path, small_config(max_position=max_position), rope_scaling=scaling)
    assert load_model_config(tmp_path).max_position == expected


BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": "576"}, "hidden_size: found '576', expected an integer"),
    ({"hidden_size": 48.0}, "hidden_size: found 48.0, expected an integer"),
    ({"hidden_size": True}, "hidden_size: found true"),
    ({"hidden_size": -576}, "hidden_size: found -576"),
    ({"hidden_size": REMOVED}, "hidden_size: found nothing"),
    ({"hidden_size": 50, "head_dim": None}, "a multiple of num_attention_heads (6)"),
    ({"head_dim": 15}, "head_dim: found 15, expected an even size"),
    ({"intermediate_size": 0}, "intermediate_size: found 0"),
    ({"intermediate_size": 10**15}, "intermediate_size"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers: found 1000000000"),
    ({"num_hidden_layers": None}, "num_hidden_layers: found null"),
    ({"num_attention_heads": -1}, "num_attention_heads"),
    ({"num_key_value_heads": 4}, "num_key_value_heads: found 4, expected a divisor"),
    ({"num_key_value_heads": 12}, "num_key_value_heads: found 12, expected a divisor"),
    ({"vocab_size": 0}, "vocab_size"),
    ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: found 0.5"),
    ({"rope_scaling": "linear"}, "rope_scaling: found 'linear', expected an object"),
    ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.rope_type: found nothing"),
    ({"rope_scaling": {"type": "longrope"}}, "rope_scaling.type: found 'longrope'"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor: found nothing"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling.factor: found 0.5"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters.rope_type"),
    ({"torch_dtype": "float64"}, "torch_dtype: found 'float64'"),
    ({"torch_dtype": 16}, "torch_dtype: found 16"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: found 'yes'"),
    ({"hidden_act": "gelu"}, "hidden_act: found 'gelu', expected 'silu'"),
    ({"architectures": ["GPT2LMHeadModel"]}, "architectures: found ['GPT2LMHeadModel']"),
    ({"architectures": []}, "architectures: found [], expected one of LlamaForCausalLM"),
    ({"architectures": REMOVED}, "architectures: found nothing"),
    ({"architectures": ["LlamaForCausalLM", "Extra"]}, "architectures"),
    ({"quantization_config": {"bits": 4}}, "quantization_config.quant_method: found nothing"),
    (
        {"quantization_config": {"quant_method": "compressed-tensors"}},
        "quantization_config.quant_method: found 'compressed-tensors', expected 'fp8'",
    ),
    (
        {"quantization_config": {"quant_method": "fp8"}},
        "quantization_config.weight_block_size: found nothing",
    ),
    (
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 0]}},
        "quantization_config.weight_block_size: found [128, 0]",
    ),
    (
        {"quantization_config": {"quant_method": "fp8", "fmt": "e5m2"}},
        "quantization_config.fmt: found 'e5m2', expected 'e4m3'",
    ),
    ({"bos_token_id": 300}, "bos_token_id: found 300, expected an integer from 0 to 299"),
    ({"eos_token_id": 300}, "eos_token_id: found 300"),
    ({"eos_token_id": [2, "x"]}, "eos_token_id: found [2, 'x'], expected token ids"),
    ({"eos_token_id": [True]}, "eos_token_id"),
    ({"eos_token_id": None}, "eos_token_id: found null, expected the id of a token"),
    ({"eos_token_id": []}, "eos_token_id: found []"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_VALUES, ids=[text for _, text in BAD_VALUES])
def test_a_bad_value_names_file_and_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_config(tmp_path, small_config(), **changes)
    assert_one_line(refused(tmp_path), tmp_path / "config.json", message)


BAD_FILES: list[tuple[bytes, str]] = [
    (b"", "is empty"),
    (b" \n", "is empty"),
    (b"\xef\xbb\xbf{}", "byte order mark"),
    (b"\xff\xfe{\x00}\x00", "not UTF-8"),
    (b"{", "not valid JSON"),
    (b"[]", "found [], expected a JSON object"),
    (b"null", "found null, expected a JSON object"),
    (b'{"rope_theta": NaN}', "NaN is not a JSON value"),
    (b'{"rope_theta": -Infinity}', "-Infinity is not a JSON value"),
    (b'{"a": 1, "a": 2}', "'a' appears twice"),
    (b"[" * 200_000, "nested too deeply"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    (b'{"a": "' + b"x" * (5 << 20) + b'"}', "is larger than"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES, ids=[text for _, text in BAD_FILES])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert_one_line(refused(tmp_path), tmp_path / "config.json", message)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert_one_line(refused(tmp_path), tmp_path / "config.json", "no such file")


def test_remote_code_is_refused_and_never_imported(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    write_config(tmp_path, small_config(), auto_map={"AutoModel": "modeling_evil.Evil"})
    assert_one_line(refused(tmp_path), "auto_map", "never imported")
    assert not marker.exists()
    assert "modeling_evil" not in sys.modules


@pytest.mark.parametrize(
    ("architecture", "changes", "served"),
    [
        ("MistralForCausalLM", {"sliding_window": None}, True),
        ("MistralForCausalLM", {"sliding_window": 512}, True),
        ("MistralForCausalLM", {"sliding_window": 511}, False),
        # An absent key means the 4096 of transformers' class.
        ("MistralForCausalLM", {"sliding_window": REMOVED}, True),
        (
            "MistralForCausalLM",
            {"sliding_window": REMOVED, "max_position_embeddings": 8192},
            False,
        ),
        ("LlamaForCausalLM", {"sliding_window": 16}, False),
        ("Qwen2ForCausalLM", {"sliding_window": 16, "use_sliding_window": False}, True),
        ("Qwen2ForCausalLM", {"sliding_window": 16, "use_sliding_window": True}, False),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"] * 3}, True),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention", "sliding_attention"]}, False),
    ],
)
def test_windowed_attention_is_refused(
    tmp_path: Path, architecture: str, changes: dict[str, Any], served: bool
) -> None:
    write_config(tmp_path, small_config(architecture), **changes)
    if served:
        assert load_model_config(tmp_path).architecture == architecture
    else:
        key = "layer_types" if "layer_types" in changes else "sliding_window"
        assert_one_line(refused(tmp_path), key)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": 7}, (7,)),
        ({"eos_token_id": [7, 9, 7]}, (7, 9)),
        ({"eos_token_id": None}, (2,)),
        ({}, (2,)),
    ],
)
def test_generation_config_decides_what_ends_a_sequence(
    tmp_path: Path, generation: dict[str, Any], expected: tuple[int, ...]
) -> None:
    write_config(tmp_path, small_config())
    write_json(tmp_path / "generation_config.json", generation)
    assert load_model_config(tmp_path).eos_token_ids == expected


def test_a_damaged_generation_config_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, small_config())
    (tmp_path / "generation_config.json").write_text("{")
    assert_one_line(refused(tmp_path), "generation_config.json", "not valid JSON")


def test_checking_a_directory_needs_no_torch() -> None:
    """Front doors read the configuration and the tokenizer without the engine's libraries."""
    code = (
        "import sys; import twinflow.runtime.checkpoint.config, "
        "twinflow.runtime.checkpoint.tokenizer_check, twinflow.runtime.checkpoint.limits; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_every_key_survives_random_values(tmp_path: Path) -> None:
    """Whatever one key holds, the answer is a config or a CheckpointError of one line."""
    values: tuple[Any, ...] = (
        None,
        True,
        -1,
        0,
        3,
        2**70,
        1.5,
        1e308,
        "",
        "x\ny",
        [],
        [[1]],
        {},
        {"a": {}},
    )
    original = hf_config_json(small_config(rope_scaling=ROPE_SCALINGS["yarn"]))
    path = tmp_path / "config.json"
    errors = 0
    for key in (*original, "rope_parameters", "dtype", "layer_types", "sliding_window"):
        for value in values:
            path.write_text(json.dumps(original | {key: value}), encoding="utf-8")
            try:
                load_model_config(tmp_path)
            except CheckpointError as error:
                assert_one_line(error, path)
                errors += 1
    assert errors > 100
