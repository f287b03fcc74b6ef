"""Reading weights: what arrives, what is refused (rows C1 to C7, C12), and the fingerprint."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.support.checkpoints import (
    assert_one_line,
    edit_json,
    small_config,
    write_checkpoint,
    write_json,
    write_shards,
)
from tests.support.tiny_models import tiny_state_dict
from torch import Tensor

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.weights import Checkpoint

INDEX = "model.safetensors.index.json"


def refused(directory: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    return caught.value


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tensors_arrive_as_they_were_saved(tmp_path: Path, shards: int, dtype: torch.dtype) -> None:
    state = tiny_state_dict(small_config(), dtype=dtype)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, state=state, shards=shards))
    assert_same(dict(checkpoint.tensors()), state)
    assert checkpoint.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, shards=2))
    calls: list[tuple[int, int]] = []
    for _ in checkpoint.tensors(lambda done, total: calls.append((done, total))):
        pass
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert len(done) >= len(checkpoint.shapes)
    assert calls[-1] == (checkpoint.total_bytes, checkpoint.total_bytes)


def test_the_size_is_known_without_reading(tmp_path: Path) -> None:
    state = tiny_state_dict(small_config())
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, state=state))
    assert checkpoint.total_bytes == 4 * sum(tensor.numel() for tensor in state.values())


def test_loaded_tensors_outlive_their_file(tmp_path: Path) -> None:
    """A mapped file that is cut short kills the process; tensors here are copies."""
    state = tiny_state_dict(small_config())
    directory = write_checkpoint(tmp_path, state=state)
    loaded = dict(Checkpoint.open(directory).tensors())
    with open(directory / "model.safetensors", "r+b") as file:
        file.truncate(100)
    assert_same(loaded, state)
    assert_one_line(refused(directory), "model.safetensors", "cut short")


def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path)
    checkpoint = Checkpoint.open(directory)
    with open(directory / "model.safetensors", "r+b") as file:
        file.truncate(checkpoint.total_bytes)
    with pytest.raises(CheckpointError) as caught:
        dict(checkpoint.tensors())
    assert_one_line(caught.value, "model.safetensors", "changed since it was opened")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path)
    tensors = Checkpoint.open(directory).tensors()
    next(tensors)
    with open(directory / "model.safetensors", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(CheckpointError) as caught:
        list(tensors)
    assert_one_line(caught.value, "model.safetensors", "became shorter")


def test_a_file_that_disappears_is_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path)
    checkpoint = Checkpoint.open(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        dict(checkpoint.tensors())
    assert_one_line(caught.value, "model.safetensors", "No such file")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_values_that_are_not_finite_are_refused(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    state = tiny_state_dict(small_config(), dtype=dtype)
    state["model.layers.1.mlp.up_proj.weight"][5, 7] = value
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, state=state))
    with pytest.raises(CheckpointError) as caught:
        dict(checkpoint.tensors())
    assert_one_line(
        caught.value, "model.safetensors", "'model.layers.1.mlp.up_proj.weight'", "found 1 NaN"
    )


def test_the_fingerprint_is_the_same_for_the_same_model(tmp_path: Path) -> None:
    single = Checkpoint.open(write_checkpoint(tmp_path / "single"))
    sharded = Checkpoint.open(write_checkpoint(tmp_path / "sharded", shards=3))
    dict(single.tensors())
    assert single.fingerprint == sharded.fingerprint
    assert len(single.fingerprint) == 32


def test_one_other_weight_is_another_fingerprint(tmp_path: Path) -> None:
    state = tiny_state_dict(small_config())
    original = Checkpoint.open(write_checkpoint(tmp_path / "a", state=state)).fingerprint
    norm = state["model.norm.weight"]
    norm[3] = torch.nextafter(norm[3], torch.tensor(9.0))
    assert Checkpoint.open(write_checkpoint(tmp_path / "b", state=state)).fingerprint != original


def test_exchanged_tensors_are_another_fingerprint(tmp_path: Path) -> None:
    state = tiny_state_dict(small_config())
    original = Checkpoint.open(write_checkpoint(tmp_path / "a", state=state)).fingerprint
    first, second = "model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight"
    state[first], state[second] = state[second], state[first]
    assert Checkpoint.open(write_checkpoint(tmp_path / "b", state=state)).fingerprint != original


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_the_fingerprint_covers_configuration_and_tokenizer(tmp_path: Path, name: str) -> None:
    directory = write_checkpoint(tmp_path)
    original = Checkpoint.open(directory).fingerprint
    with open(directory / name, "ab") as file:
        file.write(b" ")
    assert Checkpoint.open(directory).fingerprint != original


class _Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "weights.pkl"])
def test_formats_that_run_code_are_refused_unread(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "executed"
    directory = write_checkpoint(tmp_path / "model")
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(pickle.dumps(_Bomb(marker)))
    assert_one_line(refused(directory), directory / name, "never opened", "model.safetensors")
    (directory / name).rename(directory / "model.safetensors")
    assert_one_line(refused(directory), "model.safetensors", "pickle under another name")
    assert not marker.exists()


def test_a_pickle_beside_safetensors_is_ignored(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path)
    (directory / "pytorch_model.bin").write_bytes(b"anything")
    assert len(dict(Checkpoint.open(directory).tensors())) > 0


def test_a_gguf_file_gets_the_import_command(tmp_path: Path) -> None:
    (tmp_path / "Model.Q4_1.gguf").touch()
    message = f"twinflow models import {tmp_path / 'Model.Q4_1.gguf'} DIR"
    assert_one_line(refused(tmp_path), message)


def test_no_weights_at_all(tmp_path: Path) -> None:
    assert_one_line(refused(tmp_path), tmp_path, "expected model.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    assert_one_line(refused(tmp_path), "has adapter_model.safetensors, but neither")


@pytest.mark.parametrize(
    ("home", "reason"),
    [
        ("absent.safetensors", "names the shard 'absent.safetensors', which does not exist"),
        ("../../etc/passwd", "expected the name of a .safetensors file"),
        ("../other/model.safetensors", "expected a plain name"),
        ("/etc/x.safetensors", "expected a plain name"),
        ("sub/x.safetensors", "expected a plain name"),
        ("link.safetensors", "outside of"),
        ("pytorch_model.bin", "expected the name of a .safetensors file"),
        (17, "expected the name of a .safetensors file"),
        (None, "expected the name of a .safetensors file"),
    ],
)
def test_an_index_leads_nowhere_else(tmp_path: Path, home: object, reason: str) -> None:
    directory = write_checkpoint(tmp_path / "model", shards=2)
    write_checkpoint(tmp_path / "other")
    (directory / "link.safetensors").symlink_to(tmp_path / "other" / "model.safetensors")
    write_json(directory / INDEX, {"weight_map": {"model.norm.weight": home}})
    assert_one_line(refused(directory), directory, reason)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_needs_a_weight_map(tmp_path: Path, weight_map: object) -> None:
    directory = write_checkpoint(tmp_path, shards=2)
    edit_json(directory / INDEX, weight_map=weight_map)
    assert_one_line(refused(directory), INDEX, "weight_map")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    write_shards(tmp_path, [{"a": a, "b": b}, {"a": a, "c": c}])
    assert_one_line(refused(tmp_path), INDEX, "tensor 'a' is in two shards")


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, shards=2)
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    write_shards(directory, [{"a": torch.ones(1)}, {"b": torch.ones(1)}])
    write_json(directory / INDEX, {"weight_map": {"a": first, "b": second, "z": second}})
    assert_one_line(refused(directory), INDEX, "tensors are in no shard: z")
    write_json(directory / INDEX, {"weight_map": {"a": second, "b": first}})
    assert_one_line(refused(directory), "the index says")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, shards=3)
    second = directory / "model-00002-of-00003.safetensors"
    second.write_bytes(second.read_bytes()[:-1])
    assert_one_line(refused(directory), second, "cut short")


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, state={})
    assert_one_line(refused(directory), "has no tensors")


def test_a_copy_of_a_directory_has_its_fingerprint(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "a")
    shutil.copytree(directory, tmp_path / "b")
    assert Checkpoint.open(directory).fingerprint == Checkpoint.open(tmp_path / "b").fingerprint
