"""The benchmark of speculation on a tiny model, and the report of drafting stages."""

import json
from pathlib import Path

import pytest
from benchmarks.speculating import stages
from benchmarks.speculating.arms import NONE, arm_names
from benchmarks.speculating.report import draw_stages, stage_figures, stage_table
from benchmarks.speculating.tasks import NAMES, TaskSource
from benchmarks.speculative import main
from tests.support.checkpoints import small_config, write_checkpoint

from twinflow.runtime.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(num_layers=6, max_position=1024)
    return write_checkpoint(tmp_path_factory.mktemp("model"), config)


@pytest.mark.slow
def test_every_arm_generates_the_same_tokens(model: Path, tmp_path: Path) -> None:
    options = ["--concurrency", "1", "2", "--rounds", "1", "--least", "1", "--tasks", "code"]
    options += ["--length", "24", "--tokens", "8", "--count", "3", "--out", str(tmp_path)]
    assert main(["serve", str(model), *options]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert "benchmarks.speculative serve" in report["heading"][0]
    cells = report["cells"]
    assert [cell["arm"] for cell in cells[: len(arm_names())]] == arm_names()
    assert len(cells) == 2 * len(arm_names())
    for cell in cells:
        assert cell["same_tokens"]
        assert 0.0 < cell["draft_share"] + cell["verify_share"] <= 1.0
        if cell["arm"] == NONE:
            assert (cell["tokens_per_pass"], cell["tpot_ratio"]) == (1.0, [1.0])
        if cell["arm"] == "draft_model":  # the model itself
            assert (
                set(cell["acceptance_by_place"]) <= {1.0} or cell["acceptance_by_place"][0] == 1.0
            )
            assert cell["tokens_per_pass"] > 2.0
        if cell["arm"] == "easyspec N=4":
            assert cell["acceptance_by_place"][0] == 1.0
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_prompts_are_reproducible_and_differ_by_round(model: Path) -> None:
    source = TaskSource(Tokenizer.load(model), 24)
    for task in NAMES:
        first = source.prompts(task, 0, 3)
        assert first == source.prompts(task, 0, 3)
        assert first != source.prompts(task, 1, 3)
    (copied,) = source.prompts("copy", 0, 1)
    assert copied[-6:] == copied[:6]


def test_stages_are_compared_with_sequential_drafting_in_the_same_round() -> None:
    times: stages.Times = {
        (shape.name, layout, size): [0.1 * number / size for number in (1, 2, 3)]
        for shape in stages.SHAPES
        for layout in stages.LAYOUTS
        for size in stages.SIZES
    }
    rows = stage_table(times).splitlines()
    assert len(rows) == 2 + len(times)
    row = next(row for row in rows if "576" in row and "| fused_tp | 4 |" in row)
    assert row.endswith("| 50.0 [25.0, 75.0] | 4.00 |")
    assert json.dumps(stage_figures(times)).count("seconds") == len(times)
    assert len(draw_stages(times).axes) == len(stages.SHAPES)
