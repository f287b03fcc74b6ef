"""`twinflow chaos` breaks a deployment of its own, and leaves nothing behind."""

import json
from pathlib import Path

import pytest
from tests.support.command_line import run_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_worker_dies_and_a_block_is_corrupted_in_a_hand_off(
    tiny_model: Path, tmp_path: Path
) -> None:
    ran = run_command(
        *("chaos", str(tiny_model), "--prefill", "1", "--decode", "1"),
        *("--targets", "decode", "link", "--actions", "kill", "corrupt", "--moments", "hand-off"),
        *("--max-model-len", "4096", "--num-kv-blocks", "300", "--threads-per-worker", "1"),
        # What is tested is that it works, on a machine that may be busy.
        *("--patience", "20", "--report", str(tmp_path / "report")),
    )
    assert ran.status == 0, ran.out + (tmp_path / "report.log").read_text()[-3000:]
    assert "2 faults" in ran.out
    assert "Still there" not in ran.out
    told = json.loads((tmp_path / "report.json").read_text())
    assert {run["action"] for run in told["runs"]} == {"kill", "corrupt"}
    assert told["succeeded"] == told["requests"] > 10
    assert "| decode | kill | hand-off | 1 |" in (tmp_path / "report.md").read_text()
