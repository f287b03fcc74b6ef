"""Who would wait too long, judged by those who came before."""

import pytest
from tests.support.simulations import Setting, poisson

from twinflow.cluster.dispatch.admission import AdmissionLimits
from twinflow.cluster.dispatch.forecast import Forecast, Wait
from twinflow.cluster.simulator.fleet import Fleet
from twinflow.cluster.simulator.measures import Objective


def served(forecast: Forecast, ahead: int, waited_s: float, own: int = 10, times: int = 1) -> None:
    """Let sequences have their first tokens."""
    for _ in range(times):
        forecast.observe(Wait(100.0, ahead, own, forecast.limit_s(600.0)), 100.0 + waited_s)


def test_nobody_is_refused_before_somebody_has_waited_for_long() -> None:
    forecast = Forecast(1.0)
    assert forecast.excess_s(1_000_000, 1.0) == 0.0
    served(forecast, ahead=1000, waited_s=0.5, times=9)
    assert forecast.pace is None
    served(forecast, ahead=1000, waited_s=1.0)
    assert forecast.pace == 1000.0
    # Paces vary, so that only 0.7 of the second may be filled.
    assert forecast.excess_s(700, 1.0) == 0.0
    assert forecast.excess_s(1700, 1.0) == pytest.approx(1.0)


def test_the_pace_follows_what_is_seen() -> None:
    forecast = Forecast(1.0)
    served(forecast, ahead=1000, waited_s=1.0)
    served(forecast, ahead=4000, waited_s=1.0, times=100)
    assert forecast.pace == pytest.approx(4000, rel=0.01)
    served(forecast, ahead=500, waited_s=1.0, times=100)
    assert forecast.pace == pytest.approx(500, rel=0.01)


def test_few_tokens_say_nothing_of_how_slow_many_would_be() -> None:
    """A pass takes its time for one token as for a hundred."""
    forecast = Forecast(1.0)
    served(forecast, ahead=1000, waited_s=1.0)
    served(forecast, ahead=20, waited_s=0.1, times=100)
    served(forecast, ahead=10, waited_s=5.0, own=10, times=100)  # alone, and slow by itself
    assert forecast.pace == 1000.0
    served(forecast, ahead=20, waited_s=0.01, times=100)
    assert forecast.pace == pytest.approx(2000, rel=0.01), "but of how fast"


def test_a_deadline_counts_where_it_is_sooner() -> None:
    assert Forecast(1.0).limit_s(600.0) == 1.0
    assert Forecast(1.0).limit_s(0.5) == 0.5
    assert Forecast().limit_s(0.5) == 0.5
    forecast = Forecast()
    served(forecast, ahead=60_000, waited_s=600.0)
    assert forecast.excess_s(40, 1.0) == 0.0
    assert forecast.excess_s(100, 1.0) > 0.0


def test_twice_the_load_leaves_goodput_as_it_is() -> None:
    """And without a promise next to nothing of it."""
    limit_s, seconds = 0.5, 8

    def goodput(rate: int, promise_s: float | None) -> float:
        setting = Setting(admission=AdmissionLimits(longest_wait_s=promise_s))
        fleet = Fleet(setting.config(), (Objective("ttft", 1000 * limit_s),))
        fleet.run(poisson(rate * seconds, rate, "4000:20"))
        fleet.check_integrity()
        assert fleet.measures.failed == 0
        return fleet.measures.good / seconds

    peak = goodput(11, limit_s)
    assert peak > 8
    assert goodput(22, limit_s) >= 0.9 * peak
    assert goodput(22, None) < 0.3 * peak
