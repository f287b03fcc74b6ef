"""The control in a model of step times: finds what is worth it; costs little where nothing is."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from twinflow.protos.errors import ConfigError
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.goodput.acceptance import Acceptance
from twinflow.runtime.speculative.goodput.controller import (
    Ask,
    Drafting,
    GoodputController,
)
from twinflow.runtime.speculative.goodput.record import differing_choices, read_choices
from twinflow.runtime.speculative.goodput.setup import create_goodput
from twinflow.runtime.speculative.goodput.times import RowTimes

MOST = 4
Times = Callable[[int], float]


def memory_bound(rows: int) -> float:
    return 1.0 + 0.001 * rows


def saturated(rows: int) -> float:
    return 0.05 * rows


@dataclass
class Machine:
    """Requests that decode for ever, on a machine that takes its time.

    Attributes:
        controller: adapts what is proposed.
        times: seconds of a step by its rows.
        acceptance: of a request, by its number.
        noise: share by which steps take longer or shorter.
    """

    controller: GoodputController
    times: Times
    acceptance: Callable[[int], float]
    requests: int = 8
    noise: float = 0.05
    seconds: float = 0.0
    tokens: int = 0
    limits: tuple[int, ...] = ()
    chance: random.Random = field(default_factory=lambda: random.Random(7))

    def run(self, steps: int) -> float:
        """Tokens per second of so many steps."""
        self.seconds, self.tokens = 0.0, 0
        for _ in range(steps):
            self._step()
        return self.tokens / self.seconds

    def _step(self) -> None:
        names = [str(number) for number in range(self.requests)]
        asks = [Ask(name, MOST) for name in names]
        held = self.controller.holds(self.requests)
        nothing = (0,) * len(asks)
        self.limits = nothing if held else self.controller.limits(asks, self.requests)
        rows = self.requests + sum(self.limits)
        seconds = self.times(rows) * (1.0 + self.chance.uniform(-self.noise, self.noise))
        if any(self.limits):
            self.controller.drafted(Drafting(0.0, max(self.limits), sum(self.limits)))
        self.controller.stepped(rows, seconds)
        for number, limit in enumerate(self.limits):
            right = 0
            while right < limit and self.chance.random() < self.acceptance(number):
                right += 1
            self.tokens += 1 + right
            if limit:
                self.controller.verified(names[number], right, limit)
        self.seconds += seconds


def machine(times: Times, acceptance: float, requests: int = 8) -> Machine:
    return Machine(GoodputController((1,) * MOST), times, lambda _: acceptance, requests)


def test_everything_is_proposed_where_rows_cost_nothing_and_proposals_are_right() -> None:
    made = machine(memory_bound, 0.9)
    made.run(100)
    assert made.run(200) > 0.9 * 8 * sum(0.9**level for level in range(5)) / memory_bound(40)
    figures = made.controller.figures
    assert figures.speculating > 280


@pytest.mark.parametrize("requests", [1, 8, 64])
@pytest.mark.parametrize("acceptance", [0.0, 0.5, 0.8])
def test_a_saturated_machine_loses_at_most_two_per_cent(requests: int, acceptance: float) -> None:
    made = machine(saturated, acceptance, requests=requests)
    made.run(64)
    alone = requests / saturated(requests)
    assert made.run(2000) >= 0.98 * alone
    assert made.controller.figures.silent > 1800


@pytest.mark.parametrize("dearer", [1, 5])
def test_catching_up_costs_a_hundredth_and_one_attempt_where_it_is_not_worth_it(
    dearer: int,
) -> None:
    """32 seats of short requests, each with a prompt that the drafter has to read first.

    Every other attempt may take several times as long.
    """
    controller = GoodputController((1,) * MOST)
    requests, prompt, length, steps = 32, 100, 24, 2000
    behind = [prompt] * requests
    extra = attempt = 0.0
    for step in range(steps):
        number, done = divmod(step, length)
        limits: tuple[int, ...] = (0,) * requests
        if not controller.holds(requests):
            names = [f"{seat} {number}" for seat in range(requests)]
            asks = [Ask(name, MOST, behind[seat], length - done) for seat, name in enumerate(names)]
            limits = controller.limits(asks, requests)
        rows, late = sum(limits), sum(b for b, limit in zip(behind, limits, strict=True) if limit)
        drafting = 0.1 * max(limits) + 0.01 * late
        if rows:
            drafting *= dearer if controller.figures.probes % 2 else 1
            controller.drafted(Drafting(drafting, max(limits), rows, late))
        controller.stepped(requests + rows, saturated(requests + rows))
        for seat, limit in enumerate(limits):
            behind[seat] = 0 if limit else behind[seat] + 1
            if limit:
                controller.verified(f"{seat} {number}", limit // 2, limit)
        behind = [prompt] * requests if done == length - 1 else behind
        extra += drafting + saturated(rows)
        attempt = max(attempt, drafting + saturated(rows))
    assert controller.figures.probes > 5
    assert extra <= 0.01 * steps * saturated(requests) + 2 * attempt


def test_everybody_catches_up_where_rows_cost_nothing() -> None:
    controller, behind = GoodputController((1,) * MOST), [100] * 32
    for _ in range(40):
        limits: tuple[int, ...] = (0,) * 32
        if not controller.holds(32):
            asks = [Ask(str(seat), MOST, late, 200) for seat, late in enumerate(behind)]
            limits = controller.limits(asks, 32)
        rows, late = sum(limits), sum(b for b, limit in zip(behind, limits, strict=True) if limit)
        if rows:
            controller.drafted(
                Drafting(0.01 * max(limits) + 0.0001 * late, max(limits), rows, late)
            )
        controller.stepped(32 + rows, memory_bound(32 + rows))
        for seat, limit in enumerate(limits):
            behind[seat] = 0 if limit else behind[seat] + 1
            if limit:
                controller.verified(str(seat), limit, limit)
    assert not any(behind)


def test_proposals_that_are_never_right_are_given_up_and_probed() -> None:
    made = machine(memory_bound, 0.0)
    made.run(64)
    before = made.controller.figures
    made.run(1000)
    after = made.controller.figures
    assert after.speculating - before.speculating < 20
    assert after.probes > before.probes


def test_whoever_is_never_right_does_not_spoil_it_for_the_others() -> None:
    controller = GoodputController((1,) * MOST)
    made = Machine(controller, lambda rows: 1.0 + 0.05 * rows, lambda number: 0.9 * (number != 3))
    made.run(200)
    given = [0] * 8
    for _ in range(200):
        made.run(1)
        given = [sum(both) for both in zip(given, made.limits, strict=True)]
    assert given[3] < 100
    assert min(total for number, total in enumerate(given) if number != 3) > 400


def test_proposals_come_back_when_they_are_right_again_and_when_load_falls() -> None:
    made = machine(memory_bound, 0.0)
    made.run(300)
    assert not any(made.limits)
    made.acceptance = lambda _: 0.9
    made.run(1200)
    assert sum(made.limits) == 8 * MOST

    def knee(rows: int) -> float:
        return max(1.0, rows / 32)

    made = machine(knee, 0.8, requests=64)
    made.run(300)
    assert not any(made.limits)
    made.requests = 4
    made.run(300)
    assert sum(made.limits) == 4 * MOST


def test_a_choice_of_nothing_holds_until_the_load_falls() -> None:
    controller = GoodputController((1,) * MOST)
    asks = [Ask(str(number), MOST) for number in range(32)]
    controller.stepped(32, saturated(32))
    controller.stepped(160, saturated(160))
    assert not any(controller.limits(asks, 32))
    assert all(controller.holds(decoding) for decoding in (32, 31, 40, 33, 28))
    assert not controller.holds(27)
    assert not controller.holds(32)


def test_every_choice_can_be_made_again_from_its_record(tmp_path: Path) -> None:
    folder = tmp_path / "choices"
    path = folder / "goodput-decode-0-1.jsonl"
    config = SpeculativeConfig(
        method="ngram", num_speculative_tokens=MOST, adaptive_decisions=str(folder)
    )
    controller, other = (create_goodput(config, f"decode-{n}-1") for n in range(2))
    assert controller is not None
    assert other is not None
    made = Machine(controller, lambda rows: 1.0 + 0.02 * rows, lambda number: number / 8)
    made.run(200)
    controller.close()
    other.close()
    assert len(list(read_choices(path))) == 200
    assert differing_choices(path) == []
    lines = path.read_text().splitlines()
    lines[7] = lines[7].replace('"limits":[', '"limits":[99,')
    path.write_text("\n".join(lines))
    assert differing_choices(path) == [7]


def test_a_record_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    config = SpeculativeConfig(method="ngram", adaptive_decisions=str(tmp_path / "no" / "file"))
    with pytest.raises(ConfigError, match=r"adaptive_decisions: .* cannot be written"):
        create_goodput(config)
    assert create_goodput(SpeculativeConfig(method="ngram", adaptive=False)) is None
    assert create_goodput(None) is None


def test_what_was_learned_of_a_request_fades() -> None:
    acceptance = Acceptance()
    for step in range(20):
        acceptance.note("good", 4, 4, step)
        acceptance.note("bad", 0, 4, step)
    assert acceptance.rates(["good"], 20)[0] > 0.9
    assert acceptance.rates(["bad"], 20)[0] < 0.2
    assert acceptance.rates(["new"], 20)[0] == pytest.approx(
        acceptance.rates(["bad"], 2000)[0], abs=0.01
    )


def test_requests_that_are_over_are_forgotten() -> None:
    acceptance = Acceptance()
    for number in range(500):
        acceptance.note(str(number), 0, 1, number)
    known = acceptance.rates(["0"], 500)[0]
    acceptance.prune(["499"])
    assert acceptance.rates(["0"], 500)[0] > known


def test_times_are_averages_that_never_fall_with_rows_and_do_not_last() -> None:
    times = RowTimes()
    times.note(1, 2.0, step=0)
    times.note(2, 1.0, step=0)
    assert times.points(0) == ((1.0, 2.0), (2.0, 2.0))
    for step in range(40):
        times.note(1, 1.0, step)
    assert times.points(40)[0][1] == pytest.approx(1.0, abs=0.01)
    times.note(1, 50.0, step=41)  # one slow step is an accident
    assert times.points(41)[0][1] < 1.3
    ((_, seconds),) = times.points(1030)
    assert seconds == pytest.approx(1.25, abs=0.01)
    assert times.points(2000) == ()
