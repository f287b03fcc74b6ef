"""The calibration must pass an honest generator and fail each known kind of wrong one."""

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.load.checks import Case, Check, Truths, checks_of, near, render
from benchmarks.load.prompts import Api
from benchmarks.load.records import RequestRecord
from benchmarks.load.runs import Arm, RunResult, list_runs
from benchmarks.load.stub_server import FREEZE_S, ITL_S, TOKENS, TTFT_S
from tests.support.load import record

from twinflow.protos.errors import Unavailable

STEADY = Case("steady", "steady", Api.CHAT, rate=10.0, requests=100)
FREEZE = Case("freeze", "steady", Api.CHAT, rate=20.0, requests=200, freeze_after=60)
ORIGIN_S = 1000.0


def _dues(case: Case) -> list[float]:
    gaps = np.random.default_rng(0).exponential(1 / case.rate, case.requests)
    return [float(due) for due in np.cumsum(gaps)]


def _stub(case: Case) -> tuple[list[float], Truths]:
    """Due times, and what the stub logs of a perfect generator."""
    dues = _dues(case)
    thaw = dues[case.freeze_after] + FREEZE_S if case.freeze_after else 0.0
    truths = {}
    for index, due in enumerate(dues):
        frozen = case.freeze_after and dues[case.freeze_after] <= due < thaw
        received = thaw if frozen else due
        writes = [ORIGIN_S + received + TTFT_S + ITL_S * i for i in range(TOKENS)]
        truths[f"test-{index}"] = (ORIGIN_S + received, writes)
    return dues, truths


def _seen(index: int, due: float, writes: list[float], delay_s: float) -> RequestRecord:
    times = tuple(write - ORIGIN_S - due + delay_s for write in writes)
    return record(index, due_s=due, late_s=0.001, token_times_s=times)


def _measure(case: Case, delay_s: float = 0.0002) -> tuple[RunResult, Truths]:
    dues, truths = _stub(case)
    records = [
        _seen(index, due, truths[f"test-{index}"][1], delay_s) for index, due in enumerate(dues)
    ]
    [spec] = list_runs((Arm("stub", "http://h:1"),), (case.rate,), 1, 0)
    return RunResult(spec, case.model, "now", ORIGIN_S, len(dues), records), truths


def _failed(case: Case, result: RunResult, truths: Truths) -> set[str]:
    return {check.what for check in checks_of(case, result, truths) if not check.passed}


@pytest.mark.parametrize("case", [STEADY, FREEZE])
def test_an_honest_generator_passes(case: Case) -> None:
    assert _failed(case, *_measure(case)) == set()


def test_counting_the_role_chunk_as_first_token_fails() -> None:
    result, truths = _measure(STEADY)
    early = [
        replace(r, token_times_s=(r.due_s + 0.002, *r.token_times_s), tokens=TOKENS + 1)
        for r in result.records
    ]
    failed = _failed(STEADY, replace(result, records=early), truths)
    assert {"TTFT p50, nominal, ms", "TTFT p50, logged, ms", "ITL p99, logged, ms"} <= failed


def test_reading_late_fails() -> None:
    failed = _failed(STEADY, *_measure(STEADY, delay_s=0.006))
    assert {"TTFT p50, nominal, ms", "TTFT p50, logged, ms"} <= failed


def test_counting_from_the_actual_send_hides_the_freeze_and_fails() -> None:
    """Coordinated omission: requests of the freeze are sent after it, and count from then."""
    result, truths = _measure(FREEZE)
    hidden = []
    for r in result.records:
        received = truths[r.request_id][0] - ORIGIN_S
        hidden.append(_seen(r.index, received, truths[r.request_id][1], 0.0002))
    failed = _failed(FREEZE, replace(result, records=hidden), truths)
    assert "freeze in TTFT p99, ms" in failed


def test_late_sends_fail() -> None:
    result, truths = _measure(STEADY)
    late = [replace(r, started_s=r.due_s + 0.006) for r in result.records]
    assert "late sends p99, ms" in _failed(STEADY, replace(result, records=late), truths)


def test_a_missing_request_fails() -> None:
    result, truths = _measure(STEADY)
    failed = _failed(STEADY, replace(result, records=result.records[1:]), truths)
    assert "ended well" in failed


def test_without_any_token_there_is_no_calibration() -> None:
    result, truths = _measure(STEADY)
    mute = [replace(r, token_times_s=()) for r in result.records]
    with pytest.raises(Unavailable, match="no token arrived"):
        checks_of(STEADY, replace(result, records=mute), truths)


def test_ten_percent_and_the_allowance() -> None:
    assert near("c", "w", 20.0, 24.0, 2.0).passed
    assert not near("c", "w", 20.0, 24.1, 2.0).passed
    assert not near("c", "w", 20.0, 15.9, 2.0).passed


def test_the_table_gives_the_verdict() -> None:
    good, bad = Check("c", "a", 1.0, 1.0, 0.0, 2.0), Check("c", "b", 1.0, 3.0, 0.0, 2.0)
    assert render([good]).endswith("calibration: 1 checks passed")
    assert render([good], 2).endswith(
        "1 checks passed; 2 attempts on a noisy machine were repeated"
    )
    text = render([good, bad])
    assert "| c | b | 1.00 | 3.00 | 0.00 to 2.00 | **FAIL** |" in text
    assert text.endswith("calibration: 1 of 2 checks FAILED")
