"""An engine finds the step times that were measured for it, and no others."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from tests.support.checkpoints import write_checkpoint
from tests.support.cost import CURVES, PRICES
from tests.support.engines import create_request

from twinflow.runtime.build import build_engine
from twinflow.runtime.cost.fit import Accuracy
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.cost.profile import Profile, ProfileKey, profile_path, save_profile
from twinflow.runtime.cost.shape import ModelShape
from twinflow.runtime.engine import Engine
from twinflow.runtime.engine_plan import EngineOptions
from twinflow.runtime.step_times import engine_key

SHAPE = ModelShape(
    num_layers=3,
    dense_flops=100,
    dense_bytes=1,
    pair_flops=1,
    kv_bytes=1,
    head_flops=1,
    head_bytes=1,
)
TIMES = CostModel(SHAPE, PRICES, CURVES)
GOOD = Accuracy(10, 0.02, 0.05, 0.06)


@dataclass
class Built:
    """An engine and what was logged when it was made."""

    engine: Engine
    events: list[str]


def build(model: Path, **options: float) -> Built:
    settings = EngineOptions(model=model, dtype="float32", num_kv_blocks=65, **options)  # type: ignore[arg-type]
    with capture_logs() as logs:
        engine = build_engine(settings, clock=lambda: 0.0).engine
    return Built(engine, [log["event"] for log in logs if log["event"] != "scheduler chosen"])


def key_of(model: Path) -> ProfileKey:
    settings = EngineOptions(model=model, dtype="float32", num_kv_blocks=65)
    built = build_engine(settings, clock=lambda: 0.0)
    return engine_key(built.fingerprint, "cpu", built.dtype)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path)


def save(key: ProfileKey, path: Path) -> None:
    save_profile(Profile(key=key, times=TIMES, held_out=GOOD, fitted=GOOD), path)


def second_chunk(engine: Engine) -> int:
    """How much of a prompt a step computes beside a decoding request."""
    engine.add_request(create_request([5, 6, 7]))
    engine.step()
    prompt = create_request(list(range(3, 103)))
    engine.add_request(prompt)
    engine.step()
    return prompt.num_computed


def test_chunks_are_cut_by_what_was_measured(model: Path) -> None:
    assert build(model).events == []
    key = key_of(model)
    save(key, profile_path(model, key))
    built = build(model, tbt_objective=1e-6)
    assert built.events == ["step times"]
    assert second_chunk(built.engine) == 16  # nothing meets this objective
    assert second_chunk(build(model, tbt_objective=1e6).engine) == 100


def test_an_objective_without_step_times(model: Path) -> None:
    built = build(model, tbt_objective=1e-6)
    assert len(built.events) == 1
    assert "--tbt-objective-ms has no effect" in built.events[0]
    assert second_chunk(built.engine) == 100


@pytest.mark.parametrize("damage", ["other", "broken"])
def test_a_profile_that_does_not_fit_is_left_alone(model: Path, damage: str) -> None:
    key = key_of(model)
    path = profile_path(model, key)
    if damage == "other":
        save(ProfileKey(model="x", device=key.device, dtype=key.dtype, threads=key.threads), path)
    else:
        path.write_text("{}")
    built = build(model, tbt_objective=1e-6)
    assert built.events == ["a profile is not used"]
    assert second_chunk(built.engine) == 100


def test_threads_are_part_of_what_was_measured() -> None:
    assert engine_key("m", "cpu", "float32").threads == torch.get_num_threads()
