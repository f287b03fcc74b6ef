"""What is said to grow, and what is not."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinflow.cluster.chaos.growth import Bars, Growth, Life, Sample, growth_of, slope
from twinflow.cluster.chaos.processes import Footprint

BARS = Bars()
LIFE: Life = ("decode-0", 7)
REST = {LIFE: Footprint(300.0, 40, 12)}


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(0, 1000), st.integers(0, 2**32))
def test_a_line_is_found_in_noise(rate: float, start: float, seed: int) -> None:
    rng = random.Random(seed)
    points = [(x / 4, start + rate * x / 4 + rng.uniform(-0.1, 0.1)) for x in range(200)]
    assert slope(points) == pytest.approx(rate, abs=0.02)


def test_one_abscissa_has_no_slope() -> None:
    assert slope([(1.0, 2.0), (1.0, 5.0)]) == 0.0


def grown(mib_per_min: float, minutes: int, last: Footprint) -> Growth:
    samples = [
        Sample(15.0 * n, Footprint(300.0 + mib_per_min * n / 4, 45, 12))
        for n in range(4 * minutes + 1)
    ]
    (growth,) = growth_of({LIFE: samples}, REST, {LIFE: last}, BARS)
    return growth


def test_a_process_that_stays_as_it_is() -> None:
    growth = grown(0.05, 30, REST[LIFE])
    assert growth.minutes == 25.0
    assert growth.faults(BARS) == []


@pytest.mark.parametrize(
    ("rate", "minutes", "last", "complaint"),
    [
        (0.2, 30, REST[LIFE], "memory grows by 0.20 MiB a minute"),
        (0.09, 300, REST[LIFE], "memory grew by 27 MiB"),
        (0.0, 30, Footprint(300.0, 41, 12), "41 descriptors at rest, 40 before"),
        (0.0, 30, Footprint(300.0, 40, 13), "13 threads at rest, 12 before"),
    ],
)
def test_what_grows_is_named(rate: float, minutes: int, last: Footprint, complaint: str) -> None:
    (found,) = grown(rate, minutes, last).faults(BARS)
    assert found == complaint


def test_a_short_life_is_not_judged_by_its_memory() -> None:
    growth = grown(50.0, 6, REST[LIFE])
    assert growth.rss_slope is None
    assert growth.faults(BARS) == []
