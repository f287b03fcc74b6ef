"""From a directory to an engine: what is settled, what is refused, and when."""

from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from tests.support.checkpoints import edit_json, small_config, write_checkpoint
from tests.support.engines import create_request, run

from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.build import BuiltEngine, build_engine
from twinflow.runtime.device_choice import check_device, resolve_dtype
from twinflow.runtime.engine_plan import EngineOptions
from twinflow.runtime.host_memory import MemoryShare, taken_memory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model directory; `small_config` has 3 layers, 2 KV heads of 16."""
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def build(model: Path, **options: Any) -> BuiltEngine:
    """An engine with 32 KV blocks, unless told otherwise."""
    settings = EngineOptions(model=model, **{"dtype": "float32", "num_kv_blocks": 33, **options})
    return build_engine(settings, clock=lambda: 0.0)


class TestSettled:
    """What the options come down to."""

    def test_memory_is_cut_into_blocks(self, model: Path) -> None:
        built = build(model, num_kv_blocks=None, kv_cache_memory=1_000_000)
        block_bytes = 3 * 2 * 2 * 16 * 16 * 4
        assert built.layout.block_bytes == block_bytes
        assert built.config.num_blocks == 1_000_000 // block_bytes == built.cache.num_blocks

    def test_the_models_context_unless_memory_bounds_it(self, model: Path) -> None:
        assert build(model).config.max_model_len == small_config().max_position == 512
        with capture_logs() as logs:
            assert build(model, num_kv_blocks=5).config.max_model_len == 4 * 16
        assert "KV memory bounds the context" in [log["event"] for log in logs]

    @pytest.mark.parametrize(
        ("architecture", "expected", "reason"),
        [
            ("LlamaForCausalLM", "chunked", "the model has no experts"),
            ("Qwen3MoeForCausalLM", "layered", "load nearly all experts"),
        ],
    )
    def test_the_scheduler_suits_the_model(
        self, tmp_path: Path, architecture: str, expected: str, reason: str
    ) -> None:
        path = write_checkpoint(tmp_path, small_config(architecture))
        with capture_logs() as logs:
            assert build(path).config.scheduler == expected
        (said,) = [log for log in logs if log["event"] == "scheduler chosen"]
        assert said["scheduler"] == expected
        assert reason in said["reason"]
        with capture_logs() as logs:
            assert build(path, scheduler="chunked").config.scheduler == "chunked"
        assert logs == []

    def test_the_fingerprint_tells_weights_and_dtypes_apart(
        self, model: Path, tmp_path: Path
    ) -> None:
        other = write_checkpoint(tmp_path, small_config(rms_norm_eps=1e-3))
        fingerprints = [
            build(model).fingerprint,
            build(model, dtype="bfloat16").fingerprint,
            build(other).fingerprint,
        ]
        assert len(set(fingerprints)) == 3
        assert build(model, block_size=8, num_kv_blocks=99).fingerprint == fingerprints[0]

    def test_the_layout_tells_block_sizes_apart(self, model: Path) -> None:
        layouts = {build(model, block_size=size).layout.digest() for size in (8, 16)}
        assert len(layouts) == 2

    def test_it_runs(self, model: Path) -> None:
        built = build(model, dtype="bfloat16")
        assert built.cache.data.dtype is torch.bfloat16
        request = create_request(list(range(40)), max_tokens=3)
        built.engine.add_request(request)
        assert len(run(built.engine).tokens[request.request_id]) == 3
        assert built.engine.blocks.num_idle == 32

    def test_kv_is_announced_in_units_of_layers(self, model: Path) -> None:
        seen: list[tuple[int, int]] = []
        options = EngineOptions(model=model, dtype="float32", num_kv_blocks=33)
        built = build_engine(
            options,
            clock=lambda: 0.0,
            on_kv=lambda kv: seen.append((kv.first_layer, kv.end_layer)),
        )
        built.engine.add_request(create_request(list(range(5)), hold=True))
        built.engine.step()
        assert seen == [(0, 2), (2, 3)]
        assert built.layers_per_unit == 2

    def test_progress_ends_with_all_bytes(self, model: Path) -> None:
        seen: list[tuple[str, int, int]] = []
        options = EngineOptions(model=model, dtype="float32", num_kv_blocks=33)
        build_engine(options, clock=lambda: 0.0, progress=lambda *now: seen.append(now))
        done = [step[1] for step in seen]
        assert done == sorted(done)
        assert seen[-1][1] == seen[-1][2] > 0


class TestRefused:
    """What cannot be served is refused, and the message names what to change."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dtype": "int8"}, "--dtype int8: use auto, float32 or bfloat16"),
            ({"max_model_len": 513}, "--max-model-len: found 513, expected 1 to 512"),
            ({"max_model_len": 500, "num_kv_blocks": 5}, r"less than max_model_len \(500\)"),
            ({"block_size": 0}, "block_size must be a power of two, not 0"),
            ({"block_size": 24}, "block_size must be a power of two, not 24"),
            ({"num_kv_blocks": 0}, "0 KV blocks of 16 tokens hold"),
            ({"num_kv_blocks": None, "kv_cache_memory": 1}, "0 KV blocks of 16 tokens hold"),
            ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
            ({"max_num_batched_tokens": 8}, r"max_num_batched_tokens \(8\) must be at least"),
            ({"scheduler": "magic"}, "--scheduler magic: unknown"),
            ({"prefill_order": "lifo"}, "--prefill-order lifo: unknown"),
            ({"admission": "none"}, "--admission none: unknown"),
            ({"tbt_objective": 0}, "tbt_objective must be more than 0"),
            ({"device": "tpu"}, "device 'tpu': use cpu, or cuda"),
        ],
    )
    def test_options(self, model: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            build(model, **options)

    def test_more_memory_than_there_is_before_it_is_taken(self, model: Path) -> None:
        with pytest.raises(CheckpointError, match=r"not enough memory for weights and KV cache"):
            build(model, num_kv_blocks=1 << 40)

    def test_more_memory_than_its_share(self, model: Path) -> None:
        share = MemoryShare(free=3 * (taken_memory() + (64 << 20)), parts=3)
        block_bytes = build(model, host_memory=share).layout.block_bytes
        with pytest.raises(
            CheckpointError, match=r"KV cache in 1/3 of the \d\.\d\d GiB that the host had free: "
        ):
            build(model, num_kv_blocks=(65 << 20) // block_bytes, host_memory=share)

    def test_a_directory_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="missing"):
            build(tmp_path / "missing")

    def test_a_tokenizer_that_does_not_fit(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path, small_config(vocab_size=100))
        with pytest.raises(CheckpointError, match="tokenizer"):
            build(directory)

    def test_weights_of_another_shape(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path)
        edit_json(directory / "config.json", intermediate_size=64)
        with pytest.raises(CheckpointError, match="mlp"):
            build(directory)


@pytest.mark.parametrize("device", ["", "gpu", "cpu:1", "cpu:x", "cuda:99", "cuda:-1", "mps"])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}'"):
        check_device(device)


def test_the_cpu_is_there() -> None:
    check_device("cpu")
    check_device("cpu:0")


class TestDtype:
    """`auto` takes the checkpoint's dtype where the device computes in it."""

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_wish_is_granted(self, dtype: str) -> None:
        assert resolve_dtype(dtype, "float32", "cpu") == dtype

    @pytest.mark.parametrize(("supported", "dtype"), [(True, "bfloat16"), (False, "float32")])
    def test_auto(self, monkeypatch: pytest.MonkeyPatch, supported: bool, dtype: str) -> None:
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False
        )
        assert resolve_dtype("auto", "bfloat16", "cpu") == dtype
        assert resolve_dtype("auto", "bfloat16", "cuda") == "bfloat16"
        assert resolve_dtype("auto", "float16", "cuda") == "float32"
