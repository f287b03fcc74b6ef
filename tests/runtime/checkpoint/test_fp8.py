"""Float8 weights with a scale per block are read as the values they stand for, or refused."""

from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import (
    assert_one_line,
    edit_json,
    small_config,
    write_checkpoint,
    write_shards,
)
from tests.support.runners import fail_on_warning
from tests.support.tiny_models import tiny_state_dict
from torch import Tensor

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.checkpoint.weights import Checkpoint
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.registry import checkpoint_shapes, create_model

BLOCK = (16, 32)  # which divides neither 48 nor 80 columns
QUANTISED = "model.layers.1.mlp.down_proj.weight"  # [48, 80]
SCALES = QUANTISED + "_scale_inv"
LARGEST = 448.0  # of F8_E4M3


def scale_of(weight: Tensor, row: int, column: int) -> float:
    """The scale of the block that an element is in."""
    top, left = row // BLOCK[0] * BLOCK[0], column // BLOCK[1] * BLOCK[1]
    block = weight[top : top + BLOCK[0], left : left + BLOCK[1]]
    return float(block.abs().max()) / LARGEST


def quantised(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Float8 weight, scales by block, and the values, each element computed by itself."""
    rows, columns = weight.shape
    shape = -(-rows // BLOCK[0]), -(-columns // BLOCK[1])
    scales, values = torch.zeros(shape), torch.zeros(rows, columns)
    codes = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
    for row in range(rows):
        for column in range(columns):
            scale = torch.tensor(scale_of(weight, row, column))
            scales[row // BLOCK[0], column // BLOCK[1]] = scale
            codes[row, column] = weight[row, column] / scale
            values[row, column] = codes[row, column].float() * scale
    return codes, scales, values


@pytest.fixture(scope="module")
def states() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is in the files, and the values that it stands for."""
    expected = tiny_state_dict(small_config())
    stored = dict(expected)
    for name in (QUANTISED, "model.layers.0.self_attn.k_proj.weight"):
        stored[name], stored[name + "_scale_inv"], expected[name] = quantised(expected[name])
    return stored, expected


def write(directory: Path, state: dict[str, Tensor]) -> Path:
    """A checkpoint whose scales and weights are in different shards."""
    config = small_config()
    write_checkpoint(directory, config, state)
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(BLOCK)}
    edit_json(directory / "config.json", quantization_config=quantization)
    (directory / "model.safetensors").unlink()
    names = sorted(state)
    write_shards(directory, [{n: state[n] for n in names[i::2]} for i in range(2)])
    return directory


def test_weights_are_their_values(
    tmp_path: Path, states: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    stored, expected = states
    checkpoint = Checkpoint.open(write(tmp_path, stored))
    calls: list[tuple[int, int]] = []
    found = dict(checkpoint.tensors(lambda done, total: calls.append((done, total))))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert calls[-1] == (checkpoint.total_bytes, checkpoint.total_bytes)
    assert checkpoint.total_bytes == sum(tensor.nbytes for tensor in stored.values())
    assert len(checkpoint.fingerprint) == 32


def test_a_quantised_model_loads(
    tmp_path: Path, states: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    directory = write(tmp_path, states[0])
    config = load_model_config(directory)
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.check_shapes(checkpoint_shapes(config)) == ()
    placement = Placement(dtype=torch.bfloat16, device=torch.device("cpu"))
    model = create_model(config, placement, checkpoint.tensors(), fail_on_warning)
    assert model.dtype is torch.bfloat16


def test_scales_are_part_of_the_fingerprint(
    tmp_path: Path, states: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    stored = dict(states[0])
    first = Checkpoint.open(write(tmp_path / "a", stored)).fingerprint
    stored[SCALES] = stored[SCALES] * 2
    assert Checkpoint.open(write(tmp_path / "b", stored)).fingerprint != first


def refused(directory: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        dict(Checkpoint.open(directory).tensors())
    return caught.value


def test_what_cannot_be_dequantised_is_refused(
    tmp_path: Path, states: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    stored = states[0]
    without = {name: tensor for name, tensor in stored.items() if name != SCALES}
    error = refused(write(tmp_path / "missing", without))
    assert_one_line(error, QUANTISED, f"its scales {SCALES!r} are missing")

    error = refused(write(tmp_path / "shape", stored | {SCALES: torch.ones(3, 2)}))
    assert_one_line(error, SCALES, "F32 of the shape [3, 2]", "shape [3, 3] for blocks of 16 x 32")

    vector = {QUANTISED: torch.ones(80).to(torch.float8_e4m3fn)}
    assert_one_line(refused(write(tmp_path / "vector", stored | vector)), QUANTISED, "a matrix")

    broken = stored[QUANTISED].clone()
    broken[5, 7] = float("nan")
    error = refused(write(tmp_path / "nan", stored | {QUANTISED: broken}))
    assert_one_line(error, QUANTISED, "found 1 NaN or Inf")

    infinite = stored[SCALES].clone()
    infinite[0, 0] = float("inf")
    error = refused(write(tmp_path / "scale", stored | {SCALES: infinite}))
    assert_one_line(error, SCALES, "found 1 NaN or Inf")


def test_float8_without_quantization_config_is_refused(
    tmp_path: Path, states: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    write_checkpoint(tmp_path, small_config(), states[0])
    assert_one_line(refused(tmp_path), "is F8_E4M3, but config.json has no quantization_config")
