"""Objectives, goodput, claims and the figures of a run."""

import pytest
from benchmarks.load.records import Kind, Outcome
from benchmarks.load.slo import Objective, claims, good_requests
from benchmarks.load.summary import summarise
from tests.support.load import record

from twinflow.protos.errors import ConfigError

TTFT_150 = Objective("ttft", 150.0)
TPOT_150 = Objective("tpot", 150.0)


def test_latencies_count_from_the_intended_send_time() -> None:
    late = record(due_s=10.0, late_s=0.05, token_times_s=(0.2, 0.3, 0.6))
    assert late.lateness_s == pytest.approx(0.05)
    assert late.ttft_s == pytest.approx(0.2)
    assert late.tpot_s == pytest.approx(0.2)
    assert late.gaps_s == pytest.approx([0.1, 0.3])
    assert late.e2e_s == pytest.approx(0.6)


def test_one_token_has_no_time_per_later_token() -> None:
    single = record(token_times_s=(0.1,))
    assert single.tpot_s is None
    assert single.gaps_s == []
    assert all(each.met_by(single) for each in (TTFT_150, TPOT_150, Objective("gap", 1.0)))


@pytest.mark.parametrize(
    ("text", "times", "met"),
    [
        ("ttft:100", (0.1, 0.2), True),
        ("ttft:99", (0.1, 0.2), False),
        ("tpot:100", (0.1, 0.15, 0.3), True),
        ("tpot:99", (0.1, 0.15, 0.3), False),
        ("gap:149", (0.1, 0.15, 0.3), False),
        ("gap:151", (0.1, 0.15, 0.3), True),
        ("e2e:299", (0.1, 0.15, 0.3), False),
        ("e2e:301", (0.1, 0.15, 0.3), True),
    ],
)
def test_objectives(text: str, times: tuple[float, ...], met: bool) -> None:
    assert Objective.parse(text).met_by(record(token_times_s=times)) is met


@pytest.mark.parametrize("text", ["ttft", "ttft:", "ttft:0", "ttft:-1", "itl:5", "ttft:nan"])
def test_unusable_objectives_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--slo"):
        Objective.parse(text)


def test_goodput_needs_every_objective_and_counts_dropped_work_as_missed() -> None:
    records = [
        record(0),
        record(1, token_times_s=(0.2, 0.3)),
        record(2, token_times_s=(0.1, 0.3)),
        record(3, outcome=Outcome.REJECTED, token_times_s=()),
        record(4, outcome=Outcome.FAILED, failure="wrong_count"),
        record(5, kind=Kind.DISCONNECT, outcome=Outcome.DISCONNECTED),
        record(6, kind=Kind.BAD, outcome=Outcome.BAD_REFUSED, token_times_s=()),
    ]
    assert good_requests(records, ()) == 3
    assert good_requests(records, (TTFT_150, TPOT_150)) == 1
    summary = summarise(7, records, (TTFT_150, TPOT_150))
    assert summary.attainment == pytest.approx(1 / 5)
    assert summary.goodput_rps == pytest.approx(1 / summary.duration_s)


def test_claims_say_how_many_requests_would_do() -> None:
    records = [record(i) for i in range(63)] + [record(63, token_times_s=(0.2,))]
    p90, p99 = claims(records, (TTFT_150,))
    assert (p90.misses, p90.requests, p90.needed, p90.proven) == (1, 64, 64, True)
    assert (p99.needed, p99.proven) == (662, False)


def test_nothing_is_proven_by_nothing() -> None:
    assert not any(claim.proven for claim in claims([], (TTFT_150,)))


def test_figures_of_a_run() -> None:
    records = [record(i, due_s=float(i), late_s=0.001) for i in range(1, 5)]
    records.append(
        record(5, due_s=5.0, outcome=Outcome.FAILED, failure="closed", token_times_s=(0.5,))
    )
    summary = summarise(5, records, ())
    assert summary.outcomes == {"ok": 4, "failed": 1}
    assert summary.failures == {"closed": 1}
    assert summary.examples == {"closed": "why closed"}
    assert summary.duration_s == pytest.approx(5.5)
    assert summary.offered_rps == pytest.approx(1.0)
    assert summary.achieved_rps == pytest.approx(4 / 5.5)
    assert summary.output_tokens_per_s == pytest.approx(13 / 5.5)
    assert summary.tokens_per_chunk == 1.0
    # The failed request's first token is a measurement like any other; its end is not.
    assert summary.ttft_ms is not None
    assert summary.ttft_ms.count == 5
    assert summary.ttft_ms.max == pytest.approx(500.0)
    assert summary.e2e_ms is not None
    assert summary.e2e_ms.count == 4
    assert summary.itl_ms is not None
    assert summary.itl_ms.count == 8
    assert summary.invalid == []


def test_too_few_requests_are_said_to_be_too_few() -> None:
    few = summarise(458, [record(i) for i in range(458)], ())
    assert any("458 judged requests are too few" in note for note in few.notes)
    assert few.ttft_p99_bound_ms is None
    enough = summarise(459, [record(i) for i in range(459)], ())
    assert enough.notes == []
    assert enough.ttft_p99_bound_ms == pytest.approx(100.0)
    assert enough.e2e_p99_bound_ms == pytest.approx(300.0)


def test_a_lost_request_takes_the_bound_away() -> None:
    records = [record(i) for i in range(458)]
    records.append(record(458, outcome=Outcome.FAILED, failure="closed", token_times_s=()))
    assert summarise(459, records, ()).ttft_p99_bound_ms is None


def test_requests_that_were_never_sent_make_a_run_invalid() -> None:
    [reason] = summarise(3, [record(0), record(1)], ()).invalid
    assert reason == "1 planned requests were never sent"


def test_rejections_are_timed() -> None:
    rejected = record(0, outcome=Outcome.REJECTED, token_times_s=(), late_s=0.02)
    summary = summarise(1, [rejected], ())
    assert summary.rejection_ms is not None
    assert summary.rejection_ms.max == pytest.approx(20.0)
    assert summary.ttft_ms is None


def test_a_run_without_any_record_has_no_figures() -> None:
    summary = summarise(2, [], ())
    assert (summary.goodput_rps, summary.offered_rps, summary.attainment) == (0.0, 0.0, None)
    assert summary.invalid == ["2 planned requests were never sent"]
