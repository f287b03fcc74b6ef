"""The benchmark of admission policies: its oracle, and what it says of the others."""

import json
from pathlib import Path

import pytest
from benchmarks.admission import POLICIES, Oracle, main, register_oracle
from tests.support.schedulers import SchedulerBench

from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.schedulers import admission


def test_the_oracle_reserves_what_will_be_needed() -> None:
    """Blocks of 4. One has 3 blocks and may take 3 more; the other has 2 and takes 1 more, before
    whose end the first has taken one, at the most."""
    bench = SchedulerBench()
    ids = [
        bench.running(8, params=SamplingParams(max_tokens=500, min_tokens=13)),
        bench.waiting(8, params=SamplingParams(max_tokens=500, min_tokens=2)),
    ]
    holder, candidate = map(bench.request, ids)
    assert Oracle().reserve(bench.state(), [holder], candidate) == 2
    lone = bench.request(bench.waiting(8, params=SamplingParams(max_tokens=500, min_tokens=4)))
    assert Oracle().reserve(bench.state(), [], lone) == 1


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle can be chosen, in this test only."""
    monkeypatch.setattr(admission, "_POLICIES", dict(admission._POLICIES))
    register_oracle()


@pytest.mark.slow
@pytest.mark.usefixtures("oracle")
def test_policies_differ_as_they_should(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "long_outputs.csv"
    rows = "".join(f"{50 + i},{100 + 37 * i % 200}\n" for i in range(40))
    trace.write_text(f"num_prefill_tokens,num_decode_tokens\n{rows}")
    flags = ["--rates", "40", "--requests", "60", "--kv-gib", "0.4", "--out", str(tmp_path)]
    assert main([str(trace), *flags]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "report.md").read_text("utf-8") == out
    outcomes = json.loads((tmp_path / "report.json").read_text())["outcomes"]
    found = {one["policy"]: one for one in outcomes}
    assert tuple(found) == POLICIES
    assert found["oracle"]["evictions"] == found["conservative"]["evictions"] == 0
    assert found["aggressive"]["evictions"] > found["past-future"]["evictions"]
    assert found["conservative"]["kv_use"] < found["past-future"]["kv_use"]
    assert found["conservative"]["ttft_p50_s"] > found["oracle"]["ttft_p50_s"]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
