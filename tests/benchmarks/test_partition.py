"""The timing of decisions, where only its shape can be checked."""

import json
from pathlib import Path

from benchmarks.partition import forecasts, measure
from tests.support.cost import LLAMA_8B_CONFIG

from twinflow.parallel.partition.layout import Grid


def test_every_decision_is_timed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B_CONFIG))
    pairs = forecasts(tmp_path, 5)
    taken = measure(pairs, Grid.of(132, 8, 8))
    assert {name: len(values) for name, values in taken.items()} == {"cold": 5, "settled": 5}
    assert all(values == sorted(values) and values[-1] > 0.0 for values in taken.values())
