"""What is told of faults that were done."""

import random

from tests.support.chaos_histories import LIES, case_of, honest_history, killing

from twinflow.cluster.chaos import report
from twinflow.cluster.chaos.checker import Kind, check
from twinflow.cluster.chaos.runner import Outcome


def outcomes() -> list[Outcome]:
    """A fault that went well, and one of which a request hangs."""
    rng = random.Random(3)
    case = case_of(killing(), rng)
    good, bad = honest_history(case, rng), LIES[0][1](honest_history(case, rng), rng)
    return [
        Outcome(seed=seed, fault=killing(), history=history, violations=check(history, case))
        for seed, history in enumerate((good, bad))
    ]


def test_a_cell_is_a_row() -> None:
    told = outcomes()
    head, row = report.matrix(told)
    assert row[:4] == ["decode", "kill", "decode", "2"]
    assert dict(zip(head, row, strict=True))["noticed s"] == "0.50"
    assert row[-1] == "1"
    assert "1 violations" in report.summary(told)


def test_what_is_wrong_is_said_of_each_run() -> None:
    good, bad = outcomes()
    assert "no outcome: request-0 hangs" in report.progress_line(2, 2, bad)
    assert "violations" not in report.progress_line(1, 2, good)
    assert "* seed 1, kill decode at decode: no outcome" in report.markdown([good, bad], "chaos")


def test_programs_are_told_the_same() -> None:
    told = report.as_dict(outcomes())
    assert told["faults"] == 2
    (violation,) = told["runs"][1]["violations"]
    assert violation["kind"] == Kind.NO_OUTCOME.value
