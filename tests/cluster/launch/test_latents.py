"""How a deployment shares latents, and that nothing is approximated unawares."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from tests.support.calibrations import measured_model, quality_row, tiny_latent_config
from tests.support.checkpoints import write_checkpoint

from twinflow.cluster.config import ServeConfig
from twinflow.cluster.gateway.config import GatewayConfig
from twinflow.cluster.gateway.latent_metrics import export_loss
from twinflow.cluster.launch.deployment import WorkerPlanner, plan_gateway
from twinflow.cluster.launch.latents import LatentChoice, choose_latents
from twinflow.cluster.launch.machine import Machine, Node
from twinflow.parallel.latent.transforms.plain import PLAIN_KINDS
from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.latent_setup import LatentOptions, settle_latents
from twinflow.runtime.models.config import ModelConfig
from twinflow.workers.config import WorkerConfig

TPLA = {"mla_parallel": "tpla", "mla_shards": 2}


def served(model: Path, **changes: Any) -> ServeConfig:
    return ServeConfig(**{"model": str(model), **changes})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of which joint+4 was measured with two shards."""
    return measured_model(write_checkpoint(tmp_path / "model", tiny_latent_config()))


@pytest.fixture
def unmeasured(tmp_path: Path) -> Path:
    """A model that nobody has calibrated."""
    return write_checkpoint(tmp_path / "model", tiny_latent_config())


def test_exact_ways_need_no_measurement(unmeasured: Path) -> None:
    assert choose_latents(served(Path("not looked at"))) == LatentChoice()
    shared = choose_latents(served(unmeasured, mla_parallel="dcp", mla_shards=4))
    assert shared == LatentChoice(parallel="dcp", shards=4)
    assert shared.warning == ""
    for transform in (None, "joint"):
        single = served(unmeasured, mla_parallel="tpla", mla_shards=1, tpla_transform=transform)
        assert choose_latents(single) == LatentChoice(parallel="tpla", shards=1)


@pytest.mark.parametrize("kind", ["dcp", "tpla"])
def test_by_default_all_ranks_share_a_cache(kind: str) -> None:
    cases: list[tuple[dict[str, Any], int]] = [
        ({"tensor_parallel_size": 4}, 4),
        ({"decode_tensor_parallel_size": 2, "tensor_parallel_size": 3}, 2),
        ({"mixed": 1, "tensor_parallel_size": 2}, 2),
        ({"mixed": 1, "decode": 1, "prefill": 1, "decode_tensor_parallel_size": 4}, 1),
        ({"mixed": 1, "decode": 1, "decode_tensor_parallel_size": 6, "tensor_parallel_size": 4}, 2),
        ({"tensor_parallel_size": 4, "mla_shards": 2}, 2),
    ]
    for flags, shards in cases:
        assert ServeConfig(**{"model": "m", "mla_parallel": kind, **flags}).latent_shards == shards
    assert ServeConfig(model="m", tensor_parallel_size=4).latent_shards == 1


def test_what_was_measured_is_served_and_said(model: Path) -> None:
    choice = choose_latents(served(model, **TPLA, tpla_transform="joint+4"))
    path = model / "tpla" / "joint+4-2.safetensors"
    assert (choice.parallel, choice.shards, choice.transform) == ("tpla", 2, str(path))
    assert choice.quality is not None and choice.quality.delta_nll_per_token == 0.0125
    assert "+0.0125 nats per token" in choice.warning


def test_what_was_not_measured_is_refused_unless_the_operator_insists(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"none was not measured .* calibrate tpla .*--force"):
        choose_latents(served(model, **TPLA, tpla_transform="none"))
    choice = choose_latents(served(model, **TPLA, tpla_transform="none", force=True))
    assert (choice.transform, choice.quality) == ("none", None)
    assert choice.warning.startswith("tpla approximates attention, and nobody knows how well")


@pytest.mark.parametrize("transform", PLAIN_KINDS)
def test_what_needs_no_calibration_can_be_insisted_on(unmeasured: Path, transform: str) -> None:
    choice = choose_latents(served(unmeasured, **TPLA, tpla_transform=transform, force=True))
    assert (choice.transform, choice.shards) == (transform, 2)
    setup = settle_latents(
        LatentOptions(parallel="tpla", shards=2, transform=choice.transform), tiny_latent_config()
    )
    assert setup is not None and setup.scheme.shards == 2


def test_what_a_calibration_makes_cannot_be_insisted_on_without_its_file(unmeasured: Path) -> None:
    for transform in (None, "joint", "pca", "scores+8", "none+8", "foo", "/no/x.safetensors"):
        config = served(unmeasured, **TPLA, tpla_transform=transform, force=True)
        name = re.escape(transform or "joint-exact1")
        wanted = rf"--tpla-transform {name}: .* no such file.*calibrate.* none or hadamard, which"
        with pytest.raises(ConfigError, match=wanted):
            choose_latents(config)


def test_a_file_without_a_report_can_be_insisted_on(model: Path) -> None:
    (model / "tpla" / "report.json").unlink()
    path = model / "tpla" / "joint+4-2.safetensors"
    for transform in ("joint+4", str(path)):
        with pytest.raises(ConfigError, match="no such report"):
            choose_latents(served(model, **TPLA, tpla_transform=transform))
        choice = choose_latents(served(model, **TPLA, tpla_transform=transform, force=True))
        assert (choice.transform, choice.quality) == (str(path), None)
        assert "nobody knows how well" in choice.warning


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        (32, {"mla_shards": 3, "tpla_transform": "none"}, "--mla-shards 3: latents of 32 columns"),
        (24, {"mla_shards": 2, "tpla_transform": "hadamard"}, "power of two of columns, not 24"),
    ],
)
def test_latents_that_cannot_be_cut_so_are_refused(
    tmp_path: Path, columns: int, changes: dict[str, Any], message: str
) -> None:
    config = with_columns(columns)
    folder = write_checkpoint(tmp_path / "model", config)
    with pytest.raises(ConfigError, match=message):
        choose_latents(served(folder, mla_parallel="tpla", force=True, **changes))


def with_columns(columns: int) -> ModelConfig:
    """The tiny model with latents of so many columns."""
    config = tiny_latent_config()
    assert config.latent is not None
    return replace(config, latent=replace(config.latent, kv_rank=columns))


def test_a_damaged_report_is_not_taken_for_none(model: Path) -> None:
    (model / "tpla" / "report.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        choose_latents(served(model, **TPLA))


def test_models_without_latents_are_refused(tmp_path: Path) -> None:
    llama = write_checkpoint(tmp_path / "llama")
    for flags in ({**TPLA, "force": True}, {"mla_parallel": "dcp", "mla_shards": 2}):
        with pytest.raises(ConfigError, match="LlamaForCausalLM has no latent attention"):
            choose_latents(served(llama, **flags))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tpla_transform": "foo"}, "only --mla-parallel tpla slices latents"),
        ({"tpla_transform": "joint"}, "only --mla-parallel tpla slices latents"),
        ({"mla_parallel": "dcp", "tpla_transform": "none"}, "only --mla-parallel tpla slices"),
        ({"force": True}, "only --mla-parallel tpla slices latents"),
        ({"mla_parallel": "dcp", "force": True}, "only --mla-parallel tpla slices latents"),
        ({"mla_shards": 2}, "only --mla-parallel dcp and tpla have shards"),
        ({"mla_parallel": "sliced"}, "'replicated', 'dcp' or 'tpla'"),
        ({**TPLA, "tpla_transform": "joint+x"}, "expected a kind such as joint"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ServeConfig(**{"model": "m", **changes})


def test_every_process_is_told() -> None:
    row = quality_row("joint", 2)
    choice = LatentChoice(parallel="tpla", shards=2, transform="/t.safetensors", quality=row)
    config, nodes = ServeConfig(model="m"), [Node(Machine(cores=4, free_memory=1 << 30))]
    for plan in WorkerPlanner(config, nodes, "t", choice).first():
        (spec,) = plan.ranks
        worker = WorkerConfig.decode(spec.config)
        assert (worker.mla_parallel, worker.mla_shards) == ("tpla", 2)
        assert worker.tpla_transform == "/t.safetensors"
    gateway = GatewayConfig.decode(plan_gateway(config, "t", choice).config)
    assert gateway.loss == row


def test_the_loss_is_a_metric() -> None:
    registry, row = CollectorRegistry(), quality_row("joint+4", 2)
    export_loss(registry, "tiny", row)
    labels = {
        "model_name": "tiny",
        "transform": "joint+4",
        "shards": "2",
        "transform_id": row.id,
    }
    for name, value in (
        ("delta_nll_per_token", 0.0125),
        ("delta_nll_per_byte", 0.004),
        ("top1_agreement", 0.97),
    ):
        assert registry.get_sample_value(f"twinflow:tpla_{name}", labels) == value
