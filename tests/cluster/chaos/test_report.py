"""What is told of faults that were done."""

import random

import msgspec
from tests.support.chaos_histories import LIES, case_of, honest_history, killing

from twinflow.cluster.chaos import report
from twinflow.cluster.chaos.checker import Kind, check
from twinflow.cluster.chaos.runner import Outcome
from twinflow.cluster.chaos.verdict import Verdict, key_of


def verdicts() -> list[Verdict]:
    """A fault that went well, and one of which a request hangs."""
    rng = random.Random(3)
    case = case_of(killing(), rng)
    good, bad = honest_history(case, rng), LIES[0][1](honest_history(case, rng), rng)
    outcomes = (
        Outcome(seed=seed, fault=killing(), history=history, violations=check(history, case))
        for seed, history in enumerate((good, bad))
    )
    return [Verdict.of(one, seconds=30.0, machine_load=1.5) for one in outcomes]


def test_a_cell_is_a_row_and_so_is_a_fault() -> None:
    told = verdicts()
    head, row = report.matrix(told)
    assert row[:4] == ["decode", "kill", "decode", "2"]
    assert dict(zip(head, row, strict=True))["noticed s"] == "0.50"
    assert row[-1] == "1"
    head, row = report.overview([*told, msgspec.structs.replace(told[0], point="queued")])
    assert row[:4] == ["decode", "kill", "2", "3"]
    assert len(head) == len(row)


def test_the_summary_says_how_long_it_took_and_how_busy_the_machine_was() -> None:
    told = report.summary(verdicts())
    assert "2 faults in 1 minutes" in told
    assert "1 violations" in told
    assert "Load of the machine: 1.5, at most 1.5." in told


def test_what_is_wrong_is_said_of_each_run() -> None:
    good, bad = verdicts()
    assert "no outcome: request-0 hangs" in report.progress_line(1, 2, bad, 120.0)
    assert "(2 min left)" in report.progress_line(1, 2, bad, 120.0)
    assert "violations" not in report.progress_line(2, 2, good, 0.0)
    document = report.markdown(report.Report.of({"rate": "4"}, [good, bad]), "chaos")
    assert "* seed 1, kill decode at decode: no outcome" in document
    assert "* `rate`: 4" in document


def test_a_report_is_read_back_as_it_was() -> None:
    told = report.Report.of({"rate": "4"}, verdicts())
    read = msgspec.json.decode(told.encode(), type=report.Report)
    assert read.encode() == told.encode()
    assert [key_of(run.seed, run) for run in read.runs] == [
        (0, killing().cell),
        (1, killing().cell),
    ]
    (wrong,) = read.runs[1].violations
    assert wrong.kind == Kind.NO_OUTCOME.value


def test_requests_of_deployments_that_were_ended_do_not_count() -> None:
    good, _ = verdicts()
    ended = msgspec.structs.replace(good, is_fatal=True)
    assert report.survived([good, ended]) == (good.requests, good.succeeded)
