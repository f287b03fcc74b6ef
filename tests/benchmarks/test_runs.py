"""The open loop under virtual time, the order of runs, and the progress line."""

import io

import pytest
from benchmarks.load.progress import Progress
from benchmarks.load.records import Outcome, PreparedRequest, RequestRecord
from benchmarks.load.runs import Arm, list_runs, run_open_loop
from benchmarks.load.summary import summarise
from tests.support.load import VirtualClock, plan, prepared, record

SERVICE_S = 0.02


class FreezingServer:
    """Answers after 20 ms, except that nothing happens between 3 s and 5 s."""

    freeze_from = 3.0
    freeze_to = 5.0

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.in_flight = 0
        self.most_in_flight = 0

    async def send(self, request: PreparedRequest, origin_s: float) -> RequestRecord:
        started = self._clock.now() - origin_s
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        answered = self._answer_time(started)
        await self._clock.sleep_until(origin_s + answered)
        self.in_flight -= 1
        due = request.plan.due_s
        return record(
            request.plan.index, due_s=due, late_s=started - due, token_times_s=(answered - due,)
        )

    def _answer_time(self, started: float) -> float:
        if self.freeze_from - SERVICE_S < started < self.freeze_to:
            return self.freeze_to + SERVICE_S
        return started + SERVICE_S


def _steady(count: int, rate: float) -> list[PreparedRequest]:
    return [prepared(plan(i, i / rate)) for i in range(count)]


def _progress(clock: VirtualClock, planned: int = 500) -> Progress:
    return Progress("test", planned, io.StringIO(), clock.now)


async def test_a_freeze_of_the_server_neither_delays_nor_drops_a_send() -> None:
    clock = VirtualClock()
    server = FreezingServer(clock)
    loop = run_open_loop(_steady(500, 50.0), server.send, clock, _progress(clock))
    _, records = await clock.run(loop)
    assert [r.index for r in records] == list(range(500))
    assert max(r.lateness_s for r in records) == pytest.approx(0.0, abs=1e-9)
    assert server.most_in_flight >= 100
    assert server.in_flight == 0


async def test_a_freeze_shows_in_the_percentiles() -> None:
    clock = VirtualClock()
    plan_ = _steady(500, 50.0)
    _, records = await clock.run(
        run_open_loop(plan_, FreezingServer(clock).send, clock, _progress(clock))
    )
    ttft = summarise(500, records, ()).ttft_ms
    assert ttft is not None
    # 100 of 500 arrive in the freeze and wait for what is left of it.
    assert ttft.p50 == pytest.approx(20.0)
    assert ttft.p90 == pytest.approx(1020.0, abs=41)
    assert ttft.p99 == pytest.approx(1920.0, abs=41)


async def test_a_generator_that_is_held_up_is_late_and_the_run_invalid() -> None:
    clock = VirtualClock()

    class SlowClock(VirtualClock):
        """Wakes up 8 ms after it should, as on a machine without a free core."""

        now = clock.now

        async def sleep_until(self, when_s: float) -> None:
            await clock.sleep_until(when_s + 0.008)

    server = FreezingServer(clock)
    loop = run_open_loop(_steady(10, 50.0), server.send, SlowClock(), _progress(clock))
    _, records = await clock.run(loop)
    summary = summarise(10, records, ())
    assert records[4].lateness_s == pytest.approx(0.008)
    assert summary.ttft_ms is not None
    assert summary.ttft_ms.p50 == pytest.approx(28.0)
    [reason] = summary.invalid
    assert "late sends: p99 8.0 ms" in reason


async def test_an_error_of_the_generator_itself_ends_the_run() -> None:
    clock = VirtualClock()

    async def broken(request: PreparedRequest, origin_s: float) -> RequestRecord:
        raise RuntimeError("a bug")

    with pytest.raises(ExceptionGroup) as caught:
        await clock.run(run_open_loop(_steady(3, 1.0), broken, clock, _progress(clock)))
    assert "a bug" in str(caught.value.exceptions[0])


def test_runs_alternate_between_arms_with_the_same_seeds() -> None:
    arms = (Arm("a", "http://h:1"), Arm("b", "http://h:2"))
    runs = list_runs(arms, (1.0, 2.0), 2, seed=7)
    assert [(r.arm.name, r.rate, r.repeat) for r in runs] == [
        ("a", 1.0, 0), ("b", 1.0, 0), ("a", 1.0, 1), ("b", 1.0, 1),
        ("a", 2.0, 0), ("b", 2.0, 0), ("a", 2.0, 1), ("b", 2.0, 1),
    ]  # fmt: skip
    for first, second in zip(runs[::2], runs[1::2], strict=True):
        assert first.seed == second.seed
        assert first.content_seed == second.content_seed
    assert len({run.seed for run in runs}) == 4
    assert len({run.label for run in runs}) == 8


def test_arms_that_share_a_server_share_no_prompt() -> None:
    arms = (Arm("a", "http://h:1"), Arm("b", "http://h:2"), Arm("again", "http://h:1"))
    first, other, again = list_runs(arms, (None,), 1, seed=0)
    assert first.seed == other.seed == again.seed
    assert first.content_seed == other.content_seed
    assert first.content_seed != again.content_seed


def test_the_progress_line_counts() -> None:
    clock = VirtualClock()
    stream = io.StringIO()
    progress = Progress("a-2rps-r0", 10, stream, clock.now)
    for _ in range(3):
        progress.sent()
    progress.done(record(0))
    progress.done(record(1, outcome=Outcome.FAILED, failure="closed", token_times_s=()))
    progress.close()
    assert stream.getvalue() == (
        "[a-2rps-r0] 0 s: 3/10 sent, 2 done, 1 in flight, 1 failed or rejected, TTFT p50 100 ms\n"
    )


def test_the_progress_line_is_rewritten_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    Progress("a", 1, stream, lambda: 0.0).close()
    assert stream.getvalue().startswith("\r\x1b[K[a] 0 s: 0/1 sent")
    assert "TTFT p50 none yet" in stream.getvalue()
