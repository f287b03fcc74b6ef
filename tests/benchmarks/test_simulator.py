"""The comparison of simulated with real runs, on runs whose truth is known."""

import json
from itertools import accumulate
from pathlib import Path

import pytest
from benchmarks.simulator import Comparison, main, read_runs
from tests.support.cost import LLAMA_8B, PRICES, chunk, decodes, step

from twinflow.protos.errors import ConfigError
from twinflow.runtime.cost.fit import Accuracy
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.cost.profile import Profile, ProfileKey, save_profile

TRUTH = CostModel(LLAMA_8B, PRICES)


def write_results(folder: Path, slower: float = 1.0, count: int = 20) -> Path:
    """A load test of requests far apart, on a machine that is as the cost model says."""
    rows = []
    for index in range(count):
        due = 1000.0 * index
        prefill = TRUTH.seconds(step(chunk(0, 100 + index)))
        gaps = [TRUTH.seconds(step(decode=decodes(1, 101 + index + n))) for n in range(4)]
        times = [due + slower * t for t in accumulate((prefill, *gaps))]
        rows.append(
            {
                "run": "a",
                "outcome": "ok",
                "due_s": due,
                "input_tokens": 100 + index,
                "tokens": 5,
                "token_times_s": times,
            }
        )
    rows.append({"run": "a", "outcome": "failed", "token_times_s": []})
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def write_profile(folder: Path) -> Path:
    """The profile of that machine."""
    key = ProfileKey(model="m", device="cpu", dtype="float32", threads=1)
    good = Accuracy(1, 0.0, 0.0, 0.0)
    path = folder / "profile.json"
    save_profile(Profile(key=key, times=TRUTH, held_out=good, fitted=good), path)
    return path


@pytest.mark.parametrize(("slower", "status"), [(1.0, 0), (0.9, 0), (1.3, 1), (0.7, 1)])
def test_medians_decide(
    tmp_path: Path, slower: float, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    results, profile = write_results(tmp_path, slower), write_profile(tmp_path)
    assert main([str(results), str(profile)]) == status
    out = capsys.readouterr().out
    assert ("yes" if status == 0 else "no") in out.splitlines()[-1]
    assert f"{1 / slower - 1:+.1%}" in out


def test_the_same_requests_come_again(tmp_path: Path) -> None:
    (run,) = read_runs(write_results(tmp_path))
    assert len(run.shapes) == 20
    assert run.shapes[3].at_s == 3000.0
    assert (len(run.ttft), len(run.gaps)) == (20, 80)


def test_tails_may_be_off_and_medians_may_not() -> None:
    assert Comparison("TTFT", 99.0, 1.0, 5.0).holds
    assert Comparison("TTFT", 50.0, 1.0, 1.15).holds
    assert not Comparison("TBT", 50.0, 1.0, 0.8).holds


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_runs(tmp_path)
    assert main([str(tmp_path), str(write_profile(tmp_path))]) == 2
    (tmp_path / "requests.jsonl").write_text('{"outcome": "failed", "token_times_s": []}\n')
    with pytest.raises(ConfigError, match="no request that ended well"):
        read_runs(tmp_path)
