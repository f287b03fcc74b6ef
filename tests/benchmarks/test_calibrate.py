"""Which attempts of a calibration count. The measuring itself is not a unit test's business."""

from benchmarks.load.calibrate import ATTEMPTS, CASES, Attempt, calibrate
from benchmarks.load.checks import Case, Check
from benchmarks.load.machine import CpuShares

QUIET = CpuShares(0.01, 0.02, 0.03, 0.0)
NOISY = CpuShares(0.01, 0.02, 0.60, 0.0)
STOLEN = CpuShares(0.01, 0.02, 0.0, 0.2)


def _attempt(passed: bool, cpu: CpuShares | None) -> Attempt:
    return Attempt([Check("c", "figure", 1.0, 1.0 if passed else 9.0, 0.0, 2.0)], cpu)


class Measurements:
    """Gives prepared attempts and counts how often it was asked."""

    def __init__(self, *attempts: Attempt) -> None:
        self._attempts = list(attempts)
        self.cases: list[str] = []

    async def measure(self, case: Case) -> Attempt:
        self.cases.append(case.name)
        return self._attempts.pop(0)


async def test_a_failure_on_a_quiet_machine_stands() -> None:
    measured = Measurements(_attempt(False, QUIET))
    checks, discarded = await calibrate(CASES[:1], lambda text: None, measured.measure)
    assert [check.passed for check in checks] == [False]
    assert discarded == 0


async def test_a_failure_on_a_machine_of_unknown_load_stands() -> None:
    measured = Measurements(_attempt(False, None))
    checks, _ = await calibrate(CASES[:1], lambda text: None, measured.measure)
    assert [check.passed for check in checks] == [False]


async def test_a_disturbed_failure_is_repeated_and_told() -> None:
    measured = Measurements(
        _attempt(False, NOISY),
        _attempt(False, STOLEN),
        _attempt(True, NOISY),
        _attempt(True, QUIET),
    )
    notes: list[str] = []
    checks, discarded = await calibrate(CASES[:2], notes.append, measured.measure)
    assert measured.cases == [CASES[0].name] * 3 + [CASES[1].name]
    assert [check.passed for check in checks] == [True, True]
    assert discarded == 2
    assert len(notes) == 4
    assert (
        "attempt 1: failed figure; CPU of all cores: generator 1%, server 2%, others 60%"
        in notes[0]
    )


async def test_a_machine_that_stays_noisy_does_not_pass() -> None:
    measured = Measurements(*(_attempt(False, NOISY) for _ in range(ATTEMPTS)))
    checks, discarded = await calibrate(CASES[:1], lambda text: None, measured.measure)
    assert [check.passed for check in checks] == [False]
    assert discarded == ATTEMPTS - 1
