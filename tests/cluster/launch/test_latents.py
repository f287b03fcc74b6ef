"""How a deployment shares latents, and that nothing is approximated unawares."""

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
from twinflow.cluster.launch.deployment import plan_gateway, plan_workers
from twinflow.cluster.launch.latents import LatentChoice, choose_latents
from twinflow.cluster.launch.machine import Machine
from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.workers.config import WorkerConfig

TPLA = {"mla_parallel": "tpla", "mla_shards": 2}


def served(model: Path, **changes: Any) -> ServeConfig:
    return ServeConfig(**{"model": str(model), **changes})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of which joint+4 was measured with two shards."""
    return measured_model(write_checkpoint(tmp_path / "model", tiny_latent_config()))


def test_exact_ways_need_no_measurement(tmp_path: Path) -> None:
    assert choose_latents(served(tmp_path)) == LatentChoice()
    shared = choose_latents(served(tmp_path, mla_parallel="dcp", mla_shards=4))
    assert shared == LatentChoice(parallel="dcp", shards=4)
    assert shared.warning == ""


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


def test_a_damaged_report_is_not_taken_for_none(model: Path) -> None:
    (model / "tpla" / "report.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        choose_latents(served(model, **TPLA))


def test_models_without_latents_are_refused(tmp_path: Path) -> None:
    llama = write_checkpoint(tmp_path / "llama")
    with pytest.raises(ConfigError, match="LlamaForCausalLM has no latent attention"):
        choose_latents(served(llama, **TPLA, force=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mla_parallel": "tpla"}, "--mla-parallel tpla needs a number of ranks"),
        ({"mla_parallel": "dcp"}, "--mla-parallel dcp needs a number of ranks"),
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
    config, machine = ServeConfig(model="m"), Machine(cores=4, free_memory=1 << 30)
    for plan in plan_workers(config, machine, "t", choice):
        (spec,) = plan.ranks
        worker = WorkerConfig.decode(spec.config)
        assert (worker.mla_parallel, worker.mla_shards) == ("tpla", 2)
        assert worker.tpla_transform == "/t.safetensors"
    gateway = GatewayConfig.decode(plan_gateway(config, {}, "t", choice).config)
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
