"""Rotary scaling out of GGUF metadata and frequency factors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.checkpoints import assert_one_line
from tests.support.gguf_files import GgufModel, gguf_config
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.checkpoint.gguf_import import import_gguf
from twinflow.runtime.checkpoint.gguf_import.rope import llama3_factors
from twinflow.runtime.models.config import RopeScaling


def imported_scaling(model: GgufModel, directory: Path) -> RopeScaling | None:
    import_gguf(model.write(directory / "m.gguf"), directory / "m")
    return load_model_config(directory / "m").rope_scaling


def llama3_model(factors: np.ndarray) -> GgufModel:
    return GgufModel(
        config=gguf_config(rope_theta=500_000.0, head_dim=32),
        extra={"rope_freqs.weight": factors.astype(np.float32)},
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"llama.rope.scaling.type": "none"}, None),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            RopeScaling("linear", 4.0),
        ),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 2.0,
                "llama.rope.scaling.original_context_length": 256,
            },
            RopeScaling("yarn", 2.0, original_max_position=256),
        ),
    ],
)
def test_scaling_in_metadata(
    tmp_path: Path, changes: dict[str, Any], expected: RopeScaling | None
) -> None:
    assert imported_scaling(GgufModel(changes=changes), tmp_path) == expected


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_is_recognised_by_its_factors(tmp_path: Path, factor: float) -> None:
    model = llama3_model(llama3_factors(500_000.0, 32, factor))
    assert imported_scaling(model, tmp_path) == RopeScaling(
        "llama3", factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
    )


def test_factors_of_one_are_no_scaling(tmp_path: Path) -> None:
    assert imported_scaling(llama3_model(np.ones(16)), tmp_path) is None


def test_factors_are_those_of_transformers() -> None:
    config = LlamaConfig(
        head_dim=64,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    plain = 500_000.0 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(plain / scaled.numpy(), llama3_factors(5e5, 64, 8.0), rtol=1e-5)


@pytest.mark.parametrize(
    "factors", [np.full(16, 8.0), llama3_factors(10_000.0, 32, 8.0), np.ones(5) * 2]
)
def test_other_factors_are_refused(tmp_path: Path, factors: np.ndarray) -> None:
    with pytest.raises(CheckpointError) as caught:
        imported_scaling(llama3_model(factors), tmp_path)
    assert_one_line(caught.value, tmp_path / "m.gguf", "rope_freqs.weight", "Llama 3")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.type", "longrope"),
        ("rope.scale_linear", 4.0),
        ("rope.scaling.attn_factor", 1.5),
    ],
)
def test_what_cannot_be_expressed_is_refused(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        imported_scaling(GgufModel(changes={f"llama.{key}": value}), tmp_path)
    assert_one_line(caught.value, tmp_path / "m.gguf", f"llama.{key}: found")
