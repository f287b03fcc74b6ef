"""The timing of decisions, where only its shape can be checked."""

import json
from pathlib import Path

from benchmarks.partition import LIMIT_US, forecasts, measure, within_limit
from tests.support.cost import LLAMA_8B_CONFIG

from twinflow.parallel.partition.layout import Grid


def test_every_decision_is_timed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B_CONFIG))
    pairs = forecasts(tmp_path, 5)
    taken = measure(pairs, Grid.of(132, 8, 8))
    assert {name: len(values) for name, values in taken.items()} == {"cold": 5, "settled": 5}
    assert all(values == sorted(values) and values[-1] > 0.0 for values in taken.values())


def test_the_slow_ones_count() -> None:
    """One decision of twenty may take longer, two may not, whichever kind they are."""
    quick, slow = LIMIT_US / 4, 2 * LIMIT_US
    assert within_limit({"cold": [quick] * 19 + [slow], "settled": [quick]})
    assert not within_limit({"cold": [quick] * 18 + [slow] * 2, "settled": [quick]})
    assert not within_limit({"cold": [quick], "settled": [quick] * 18 + [slow] * 2})
