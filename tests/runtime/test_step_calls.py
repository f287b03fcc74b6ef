"""How many calls a step makes, against the numbers on record: a guard against slow decay.

Where more calls are meant, a failure says what to put on record. Counts differ a little between
versions of Python and torch, and not between machines.
"""

import json
from pathlib import Path

import pytest
from tests.support.call_counts import calls_of_a_step, decoding
from tests.support.kernels import native_library
from tests.support.served_models import write_tiny_model

from twinflow.runtime.build import build_engine
from twinflow.runtime.engine import Engine
from twinflow.runtime.engine_plan import EngineOptions

RECORD = Path(__file__).with_name("step_calls.json")
TOLERANCE = 0.1
SIZES = (1, 16)


def engine_of(model: Path, kernels: str) -> Engine:
    options = EngineOptions(
        model=model, dtype="float32", cpu_kernels=kernels, num_kv_blocks=200,
        enable_prefix_caching=False,
    )  # fmt: skip
    return build_engine(options, clock=lambda: 0.0).engine


@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_a_decode_step_makes_no_more_calls_than_it_did(tmp_path: Path, kernels: str) -> None:
    if kernels == "native":
        native_library()
    model, found = write_tiny_model(tmp_path), {}
    for size in SIZES:
        engine = engine_of(model, kernels)
        decoding(engine, size)
        found[f"{kernels}, {size} sequences"] = calls_of_a_step(engine)
    recorded = json.loads(RECORD.read_text("utf-8"))
    for name, counts in found.items():
        for kind, count in counts.items():
            allowed = recorded[name][kind] * (1 + TOLERANCE)
            assert count <= allowed, f"{name}: more {kind} calls than on record; now {found}"


def test_the_record_is_of_what_is_counted() -> None:
    names = {f"{kernels}, {size} sequences" for kernels in ("torch", "native") for size in SIZES}
    assert set(json.loads(RECORD.read_text("utf-8"))) == names
