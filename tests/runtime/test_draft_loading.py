"""A model that drafts for itself is in memory once, and drafts as if it were there twice."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.support.checkpoints import small_config, write_checkpoint

from twinflow.parallel.ranks.base import OneRank
from twinflow.runtime.draft_loading import Target, load_drafter, load_share
from twinflow.runtime.draft_team import Alone
from twinflow.runtime.engine_plan import EngineOptions, EnginePlan, plan_engine
from twinflow.runtime.model_runner import ModelRunner, SequenceRows
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.runner_loading import load_runner
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.layer_parallel.share import SINGLE

MODELS = {"heads": small_config(), "latents": small_config("DeepseekV2ForCausalLM")}


def served(directory: Path, config: ModelConfig) -> tuple[EnginePlan, ModelRunner]:
    model = write_checkpoint(directory, config)
    options = EngineOptions(model=model, num_kv_blocks=20, max_model_len=64, max_num_seqs=4)
    plan = plan_engine(options, OneRank())
    return plan, load_runner(plan, OneRank())


def drafted(plan: EnginePlan, runner: ModelRunner, model: Path) -> ModelRunner:
    config = SpeculativeConfig(method="draft_model", model=str(model))
    loaded = load_share(config, plan, SINGLE, OneRank(), runner)
    assert loaded.plan.fingerprint == plan.fingerprint
    return loaded.runner


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_shared_and_kv_is_not(tmp_path: Path, name: str) -> None:
    plan, runner = served(tmp_path / "a", MODELS[name])
    copied = shutil.copytree(tmp_path / "a", tmp_path / "b")
    once, twice = drafted(plan, runner, tmp_path / "a"), drafted(plan, runner, copied)
    assert once.shares_weights(runner)
    assert not twice.shares_weights(runner)
    rows = [SequenceRows([5, 6, 7], 0, [1], samples=True)]
    assert once.forward(rows).equal(twice.forward(rows))
    assert once.kv_cache.data.equal(twice.kv_cache.data)
    assert not once.kv_cache.data.equal(runner.kv_cache.data)


def test_models_that_are_cut_otherwise_share_nothing(tmp_path: Path) -> None:
    plan, runner = served(tmp_path / "a", MODELS["heads"])
    config = SpeculativeConfig(method="draft_model", model=str(tmp_path / "a"))
    by_experts = replace(plan, options=replace(plan.options, expert_parallel=True))
    assert not load_share(config, by_experts, SINGLE, OneRank(), runner).runner.shares_weights(
        runner
    )
    assert not load_share(config, plan, SINGLE, OneRank()).runner.shares_weights(runner)


@pytest.mark.parametrize("layout", ["owner", "single", "auto"])
def test_a_layout_that_one_rank_cannot_have_is_said_to_be_another(
    tmp_path: Path, layout: str
) -> None:
    plan, runner = served(tmp_path / "a", MODELS["heads"])
    layers = {"size": 2, "layout": layout}
    given = {"method": "easyspec", "model": str(tmp_path / "a"), "layer_parallel": layers}
    with capture_logs() as logs:
        load_drafter(SpeculativeConfig.parse(given), Target(plan, runner, Alone(runner)))
    said = [line["layout"] for line in logs if "one rank" in line["event"]]
    assert said == (["owner"] if layout == "owner" else [])
