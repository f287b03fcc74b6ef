"""What is wrong with a model is said before anything starts."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.calibrations import tiny_latent_config
from tests.support.checkpoints import (
    REMOVED,
    edit_json,
    small_config,
    write_checkpoint,
    write_json,
)
from tests.support.fake_launcher import FakeLauncher, RecordingUI
from tests.support.tiny_models import tiny_state_dict

from twinflow.cluster.config import ServeConfig
from twinflow.cluster.launch.machine import Gpus, Machine, Node
from twinflow.cluster.launch.preflight import check_fit, check_model
from twinflow.cluster.launch.serve import serve
from twinflow.protos.errors import CheckpointError, ConfigError, SetupError

GIB = 1 << 30
MACHINE = Machine(cores=2, free_memory=4 * GIB)
Damage = Callable[[Path], object]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", shards=2)


@pytest.fixture
def latent_model(tmp_path: Path) -> Path:
    """Of eight heads, and contexts of 512 tokens."""
    return write_checkpoint(tmp_path / "latent", tiny_latent_config())


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def shard(directory: Path) -> Path:
    """One of the files with weights."""
    return directory / "model-00001-of-00002.safetensors"


def store_integers(directory: Path) -> None:
    state = tiny_state_dict(small_config())
    state["model.norm.weight"] = state["model.norm.weight"].to(torch.int8)
    write_checkpoint(directory, state=state)


def pickle_weights(directory: Path) -> None:
    for path in directory.glob("model*"):
        path.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04never read")


FAULTS: dict[str, tuple[Damage, str]] = {
    "C1 cut in the data": (lambda d: cut(shard(d), 3000), "is cut short"),
    "C1 cut in the header": (lambda d: cut(shard(d), 40), "is cut short"),
    "C1 empty": (lambda d: cut(shard(d), 0), "too short"),
    "C5 dtype": (store_integers, "found dtype 'I8'"),
    "C7 missing shard": (lambda d: shard(d).unlink(), "which does not exist"),
    "C7 path": (
        lambda d: write_json(
            d / "model.safetensors.index.json", {"weight_map": {"x": "../x.safetensors"}}
        ),
        "plain name",
    ),
    "C8 missing": (lambda d: (d / "config.json").unlink(), "config.json"),
    "C8 sizes": (lambda d: edit_json(d / "config.json", hidden_size=-1), "hidden_size"),
    "C9 architecture": (lambda d: edit_json(d / "config.json", architectures=["X"]), "'X'"),
    "C9 code": (lambda d: edit_json(d / "config.json", auto_map={"a": "b"}), "auto_map"),
    "C10 missing": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json"),
    "C10 corrupt": (lambda d: cut(d / "tokenizer.json", 100), "tokenizer.json"),
    "C10 rows": (lambda d: edit_json(d / "config.json", vocab_size=100), "vocab_size"),
    "C10 no end": (lambda d: edit_json(d / "config.json", eos_token_id=REMOVED), "eos_token_id"),
    "C11 syntax": (lambda d: (d / "chat_template.jinja").write_text("{% if %}"), "line 1"),
    "C12 pickle": (pickle_weights, "never opened"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_cannot_be_served_starts_nothing(model: Path, fault: str) -> None:
    damage, reason = FAULTS[fault]
    damage(model)
    refuse(ServeConfig(model=str(model), launcher="local", device="cpu"), reason)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"model": "/nonexist"}, "/nonexist: no such directory"),
        ({"model": __file__}, "is a file"),
        ({"max_model_len": "100k"}, "--max-model-len: found 100000, expected 1 to 512"),
        ({"kv_cache_memory": "900TiB"}, "not enough memory for weights and KV cache in 1/2 of"),
        ({"num_kv_blocks": "1t"}, "not enough memory"),
        ({"num_kv_blocks": 2, "max_model_len": 500}, "less than max_model_len (500)"),
        ({"kv_cache_memory": 100}, "0 KV blocks of 16 tokens"),
    ],
)
def test_flags_that_do_not_fit_the_model_start_nothing(
    model: Path, flags: dict[str, Any], reason: str
) -> None:
    refuse(
        ServeConfig(**{"model": str(model), "launcher": "local", "device": "cpu", **flags}), reason
    )


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"tensor_parallel_size": 16}, "--tensor-parallel-size 16: 8 heads cannot be shared by 16"),
        ({"prefill_tensor_parallel_size": 3}, "--prefill-tensor-parallel-size 3: 8 heads cannot"),
        (
            {"mla_parallel": "dcp", "mla_shards": 3, "tensor_parallel_size": 2},
            "--mla-shards 3: must divide the number of ranks of a worker, which is 2",
        ),
        ({"mla_parallel": "tpla", "mla_shards": 2}, "--mla-shards 2: must divide"),
        (
            {"mla_parallel": "tpla", "mla_shards": 4, "mixed": 1, "tensor_parallel_size": 2},
            "--mla-shards 4: must divide",
        ),
    ],
)
def test_ranks_that_cannot_share_a_model_start_nothing(
    latent_model: Path, flags: dict[str, Any], reason: str
) -> None:
    refuse(ServeConfig(**{"model": str(latent_model), "device": "cpu", **flags}), reason)


def test_key_value_heads_that_cannot_be_shared_start_nothing(model: Path) -> None:
    heads = small_config()
    config = ServeConfig(model=str(model), device="cpu", tensor_parallel_size=3)
    refuse(config, f"{heads.num_heads} query heads and {heads.num_kv_heads} key/value heads")


def test_a_prefill_worker_needs_no_groups(latent_model: Path) -> None:
    config = ServeConfig(
        model=str(latent_model), mla_parallel="dcp", mla_shards=2, decode_tensor_parallel_size=2
    )
    assert check_model(config).config.num_heads == 8


def refuse(config: ServeConfig, reason: str) -> None:
    """It must be refused in one line, before anything starts."""
    launcher, ui = FakeLauncher(machines=[Node(MACHINE)]), RecordingUI()
    with pytest.raises(SetupError) as refused:
        serve(config, ui, lambda _: launcher)
    assert reason in str(refused.value) and "\n" not in str(refused.value)
    assert (launcher.opened, launcher.handles, ui.phases) == (0, [], [])


class TestFit:
    """Weights and KV cache in each worker's part of the machine."""

    def check(self, model: Path, machine: Machine = MACHINE, **flags: Any) -> None:
        config = ServeConfig(**{"model": str(model), **flags})
        check_fit(config, check_model(config), [Node(machine)])

    def test_what_fits(self, model: Path) -> None:
        self.check(model, max_model_len=512)
        self.check(model, num_kv_blocks=33, max_model_len=512)
        self.check(model, kv_cache_memory=int(1.9 * GIB))

    def test_parts_of_the_memory(self, model: Path) -> None:
        with pytest.raises(CheckpointError, match=r"3\.00 GiB needed, 2\.00 GiB available"):
            self.check(model, kv_cache_memory=3 * GIB)
        self.check(model, kv_cache_memory=3 * GIB, mixed=1)

    def test_numbers_of_half_the_size(self, model: Path) -> None:
        blocks = 1 << 19  # of 6 KiB at the least
        self.check(model, num_kv_blocks=blocks // 2, dtype="bfloat16")
        with pytest.raises(CheckpointError, match="not enough memory"):
            self.check(model, num_kv_blocks=blocks // 2, dtype="float32")

    def test_the_smallest_gpu(self, model: Path) -> None:
        machine = Machine(2, GIB, Gpus(free_memory=(8 * GIB, 2 * GIB)))
        self.check(model, machine, kv_cache_memory=GIB)
        with pytest.raises(CheckpointError, match="on GPU 1: 3"):
            self.check(model, machine, kv_cache_memory=3 * GIB)

    def test_ranks_that_share_blocks_hold_longer_contexts(self, latent_model: Path) -> None:
        flags: dict[str, Any] = {
            "num_kv_blocks": 17,
            "max_model_len": 512,
            "tensor_parallel_size": 2,
        }
        shared: dict[str, Any] = {**flags, "mla_parallel": "dcp"}
        self.check(latent_model, **shared, mixed=1)
        self.check(latent_model, **shared, mixed=1, mla_shards=2)
        for alone in (
            {**flags, "mixed": 1},
            {**shared, "mixed": 1, "mla_shards": 1},
            {**flags, "mixed": 1, "mla_parallel": "tpla"},
            # Its prefill worker holds every block on every rank.
            shared,
        ):
            with pytest.raises(ConfigError, match="16 KV blocks of 16 tokens hold 256 tokens"):
                self.check(latent_model, **alone)
        with pytest.raises(ConfigError, match="15 KV blocks of 32 tokens hold 480 tokens"):
            self.check(latent_model, **{**shared, "num_kv_blocks": 16}, mixed=1)

    def test_gpus_that_are_not_there(self, model: Path) -> None:
        with pytest.raises(ConfigError, match="--device cuda"):
            self.check(model, device="cuda")


REFUSES_LIGHTLY = """
import sys
from twinflow.cluster.cli.main import main
status = main(["serve", sys.argv[1], "--port", "0", "--grpc-port", "0"])
print(status, sorted({"torch", "ray"} & sys.modules.keys()))
"""


def test_the_command_refuses_before_it_loads_torch_or_ray(model: Path) -> None:
    cut(shard(model), 3000)
    ran = subprocess.run(
        [sys.executable, "-c", REFUSES_LIGHTLY, str(model)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "2 []\n"
    assert ran.stderr.startswith(f"twinflow: {shard(model)}: is cut short")
