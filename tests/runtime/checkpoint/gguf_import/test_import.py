"""A GGUF file becomes a model directory with the same weights, shape and tokens."""

import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from tests.support.checkpoints import assert_one_line, byte_tokenizer
from tests.support.gguf_files import (
    CHAT_TEMPLATE,
    FAMILIES,
    GgufModel,
    gguf_config,
    gguf_tensor_name,
    permute,
)

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.checkpoint.gguf_import import import_gguf
from twinflow.runtime.checkpoint.gguf_import.config import family_of
from twinflow.runtime.checkpoint.gguf_import.reader import read_gguf
from twinflow.runtime.checkpoint.gguf_import.tensors import plan_tensors, restore_rows
from twinflow.runtime.checkpoint.gguf_import.writer import write_weights
from twinflow.runtime.checkpoint.tokenizer_check import check_tokenizer
from twinflow.runtime.checkpoint.weights import Checkpoint, Meter
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.registry import checkpoint_shapes

MIXED = {
    "token_embd.weight": Kind.Q8_0,
    "blk.0.attn_q.weight": Kind.Q4_1,
    "blk.0.attn_k.weight": Kind.Q8_0,
    "blk.1.attn_q.weight": Kind.Q4_0,
    "blk.1.attn_k.weight": Kind.F16,
    "blk.1.ffn_down.weight": Kind.BF16,
    "blk.2.ffn_up.weight": Kind.Q4_1,
}


def check_import(model: GgufModel, directory: Path) -> None:
    """Import in float32 and compare everything with the model that was written."""
    target = directory / "model"
    import_gguf(model.write(directory / "model.gguf"), target, dtype="float32")
    assert load_model_config(target) == model.config
    checkpoint = Checkpoint.open(target)
    assert checkpoint.check_shapes(checkpoint_shapes(model.config)) == ()
    tensors = dict(checkpoint.tensors())
    assert tensors.keys() == model.state.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, model.expected(name)), name
    check_tokenizer(target, model.config)


CONFIGS: list[tuple[str, ModelConfig]] = [
    *((family, gguf_config(family)) for family in FAMILIES),
    ("llama", gguf_config(tie_word_embeddings=True)),
    ("llama", gguf_config(attention_bias=True, attention_output_bias=True, mlp_bias=True)),
    ("llama", gguf_config(head_dim=32)),
    ("qwen3", gguf_config("qwen3", tie_word_embeddings=True)),
]


@pytest.mark.parametrize(("family", "config"), CONFIGS)
def test_the_model_survives(tmp_path: Path, family: str, config: ModelConfig) -> None:
    check_import(GgufModel(family, config), tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_tensors_survive(tmp_path: Path, family: str) -> None:
    model = GgufModel(family, gguf_config(family), kinds=MIXED)
    check_import(model, tmp_path)
    # The comparison above is with other values than those before quantisation.
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(model.expected(name), model.state[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_llama_cpp(family: str) -> None:
    config = gguf_config(family, tie_word_embeddings=False)
    architecture = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[family]
    names = gguf.get_tensor_name_map(architecture, config.num_layers)
    for name in checkpoint_shapes(config):
        assert gguf_tensor_name(name) == names.get_name(name, (".weight", ".bias"))


def test_restored_rows_rotate_to_the_same_scores() -> None:
    """llama.cpp rotates neighbours, Hugging Face halves: q·k must not tell the difference."""
    generator = np.random.default_rng(0)
    heads, dim, hidden, position = 3, 8, 16, 5
    weights = generator.standard_normal((2, heads * dim, hidden)).astype(np.float32)
    angles = position * 10_000.0 ** (-np.arange(dim // 2) / (dim // 2))
    turn = np.exp(1j * angles)
    x = generator.standard_normal(hidden)

    def neighbours(rows: np.ndarray) -> np.ndarray:
        pairs = (rows @ x).reshape(heads, dim // 2, 2)
        return np.asarray((pairs[..., 0] + 1j * pairs[..., 1]) * turn)

    def halves(rows: np.ndarray) -> np.ndarray:
        pairs = (rows @ x).reshape(heads, 2, dim // 2)
        return np.asarray((pairs[:, 0] + 1j * pairs[:, 1]) * turn)

    stored = [permute(rows, heads) for rows in weights]
    restored = [restore_rows(rows, heads) for rows in stored]
    there = (neighbours(stored[0]) * neighbours(stored[1]).conj()).real.sum(axis=1)
    here = (halves(restored[0]) * halves(restored[1]).conj()).real.sum(axis=1)
    np.testing.assert_allclose(here, there, rtol=1e-5)
    assert np.array_equal(restored[0], weights[0])
    assert not np.array_equal(stored[0], weights[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_dtype_is_the_one_asked_for(tmp_path: Path, dtype: str) -> None:
    model = GgufModel()
    import_gguf(model.write(tmp_path / "m.gguf"), tmp_path / "m", dtype=dtype)  # type: ignore[arg-type]
    assert load_model_config(tmp_path / "m").dtype == dtype
    for name, tensor in Checkpoint.open(tmp_path / "m").tensors():
        assert torch.equal(tensor, model.state[name].to(getattr(torch, dtype)))


def test_bfloat16_is_the_default(tmp_path: Path) -> None:
    import_gguf(GgufModel().write(tmp_path / "m.gguf"), tmp_path / "m")
    assert load_model_config(tmp_path / "m").dtype == "bfloat16"


def test_values_too_large_for_the_dtype_are_refused(tmp_path: Path) -> None:
    model = GgufModel()
    model.state["model.norm.weight"][0] = 1e5
    source = model.write(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError) as caught:
        import_gguf(source, tmp_path / "m", dtype="float16")
    assert_one_line(caught.value, source, "output_norm.weight", "not finite in torch.float16")
    import_gguf(source, tmp_path / "m", dtype="bfloat16")


def test_the_tokenizer_encodes_the_same(tmp_path: Path) -> None:
    import_gguf(GgufModel().write(tmp_path / "m.gguf"), tmp_path / "m")
    ours = byte_tokenizer().from_file(str(tmp_path / "m" / "tokenizer.json"))
    for text in ("hello world 1212", "a<|im_start|>b", "  é😀\n", ""):
        encoding = ours.encode(text)
        assert encoding.ids == byte_tokenizer().encode(text).ids
        assert ours.decode(encoding.ids, skip_special_tokens=False) == text


def test_the_small_files(tmp_path: Path) -> None:
    import_gguf(GgufModel().write(tmp_path / "m.gguf"), tmp_path / "m")

    def content(name: str) -> dict[str, object]:
        loaded: dict[str, object] = json.loads((tmp_path / "m" / name).read_text("utf-8"))
        return loaded

    assert content("generation_config.json") == {
        "bos_token_id": 1,
        "pad_token_id": 2,
        "eos_token_id": 2,
    }
    assert content("tokenizer_config.json") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "chat_template": CHAT_TEMPLATE,
    }
    files = sorted((tmp_path / "m").iterdir())
    assert len(files) == 5
    assert len({path.stat().st_mode for path in files}) == 1


def test_every_end_of_a_sequence_is_kept(tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 2}
    import_gguf(GgufModel(changes=changes).write(tmp_path / "m.gguf"), tmp_path / "m")
    assert load_model_config(tmp_path / "m").eos_token_ids == (2, 0)


def test_large_models_are_sharded(tmp_path: Path) -> None:
    model = GgufModel()
    file = read_gguf(model.write(tmp_path / "m.gguf"))
    plan = plan_tensors(file, family_of(file), model.config)
    calls: list[tuple[int, int]] = []
    meter = Meter(1000, lambda done, total: calls.append((done, total)))
    write_weights(tmp_path, plan, torch.float32, meter, max_shard_bytes=100_000)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    checkpoint = Checkpoint.open(tmp_path)
    tensors = dict(checkpoint.tensors())
    assert tensors.keys() == model.state.keys()
    assert all(torch.equal(tensor, model.state[name]) for name, tensor in tensors.items())
    assert calls[-1] == (checkpoint.total_bytes, 1000)
    sizes = [(tmp_path / name).stat().st_size for name in names]
    assert max(sizes) < 110_000


def test_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    import_gguf(
        GgufModel().write(tmp_path / "m.gguf"),
        tmp_path / "m",
        lambda done, total: calls.append((done, total)),
    )
    total = Checkpoint.open(tmp_path / "m").total_bytes
    assert calls[-1] == (total, total)
    assert len(calls) == 30


@pytest.mark.parametrize("suffix", [".whl", ".zip"])
def test_an_archive_with_one_gguf_file(tmp_path: Path, suffix: str) -> None:
    source = GgufModel().write(tmp_path / "m.gguf")
    archive = tmp_path / f"m{suffix}"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(source, "../../package/m.gguf")
        packed.writestr("package/__init__.py", "raise SystemExit")
    import_gguf(archive, tmp_path / "from_archive")
    import_gguf(source, tmp_path / "from_file")
    assert (
        Checkpoint.open(tmp_path / "from_archive").fingerprint
        == Checkpoint.open(tmp_path / "from_file").fingerprint
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["m.gguf", archive.name, "from_archive", "from_file"]
    )
