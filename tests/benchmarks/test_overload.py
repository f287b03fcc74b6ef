"""What `benchmarks.overload` makes of its runs; no server is started."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.load.stats import distribution
from benchmarks.load.summary import summarise
from benchmarks.overload import EXIT_UNUSABLE, Run, as_markdown, complaints, draw, main, peak_of

TRIED = Run("without", "rate", 4.0, 4.0, 0.0, 0.0, 100.0, 200.0, None, None, "")
RUNS = [
    TRIED,
    replace(TRIED, server="with", goodput=3.0),
    replace(TRIED, rate=5.0, goodput=3.5),
    replace(TRIED, kind="overload", rate=8.0, goodput=0.5),
    replace(
        TRIED,
        server="with",
        kind="overload",
        rate=8.0,
        goodput=3.8,
        refused=0.5,
        refusal_p50_ms=3.0,
        refusal_p99_ms=9.0,
    ),
]


def test_the_peak_is_the_best_of_what_was_tried() -> None:
    assert peak_of([replace(TRIED, kind="overload", goodput=9.0), *RUNS]) is TRIED


def test_what_is_graceful() -> None:
    assert complaints(RUNS) == []
    table = as_markdown(RUNS)
    assert table.endswith("\nGraceful.\n")
    row = "twice the peak | 8.00 | with | 3.80 | 95% | 50% | 0.0% | 100 | 200 | 3 | 9"
    assert f"| {row} |" in table
    assert len(draw(RUNS).axes) == 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"goodput": 3.5}, "goodput is 88% of the peak"),
        ({"refusal_p99_ms": 51.0}, "refusals take up to 51 ms"),
        ({"failed": 0.01}, "1.0% of the requests failed"),
        ({"invalid": "late sends"}, "late sends"),
    ],
)
def test_what_is_not(changes: dict[str, Any], complaint: str) -> None:
    (found,) = complaints([*RUNS[:-1], replace(RUNS[-1], **changes)])
    assert complaint in found
    assert "Not graceful" in as_markdown([*RUNS[:-1], replace(RUNS[-1], **changes)])


def test_a_run_from_its_figures() -> None:
    summary = replace(
        summarise(10, [], ()),
        outcomes={"ok": 5, "rejected": 4, "failed": 1},
        attainment=0.5,
        offered_rps=8.0,
        rejection_ms=distribution([1.0, 2.0, 3.0, 4.0]),
        invalid=[],
    )
    run = Run.of("with", "overload", 8.0, summary)
    assert (run.goodput, run.refused, run.failed) == (4.0, 0.4, 0.1)
    assert (run.ttft_p50_ms, run.refusal_p50_ms, run.refusal_p99_ms) == (None, 2.0, 4.0)


def test_a_model_that_is_not_there_is_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "none")])
    assert ended.value.code == EXIT_UNUSABLE
    assert "none: there is no such directory" in capsys.readouterr().err
