"""Fits find what was planted, and say how good they are."""

from dataclasses import asdict, replace
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.support.cost import (
    CURVES,
    EXPERT_PRICES,
    EXPERTS,
    LLAMA_8B,
    PRICES,
    decodes,
    loads,
    step,
)

from twinflow.runtime.cost.curve import SpeedCurve, fit_curve
from twinflow.runtime.cost.fit import Accuracy, Measurement, fit_model
from twinflow.runtime.cost.least_squares import non_negative
from twinflow.runtime.cost.model import CostModel

SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
DENSE = CostModel(LLAMA_8B, PRICES, CURVES)
SPARSE = CostModel(EXPERTS, EXPERT_PRICES, CURVES)


def measured(truth: CostModel, noise: float = 0.0) -> list[Measurement]:
    """Steps as they would be measured where `truth` holds."""
    rng = np.random.default_rng(0)
    return [
        Measurement(load, truth.seconds(load, share) * float(np.exp(noise * rng.normal())), share)
        for share in SHARES
        for load in loads(truth.shape.num_layers)
    ]


@pytest.mark.parametrize("truth", [DENSE, SPARSE], ids=["dense", "experts"])
def test_planted_prices_and_curves_are_found(truth: CostModel) -> None:
    found = fit_model(truth.shape, measured(truth))
    for name, price in asdict(truth.prices).items():
        assert getattr(found.prices, name) == pytest.approx(price, rel=1e-3), name
    for side in ("compute", "memory"):
        planted, curve = getattr(truth.curves, side), getattr(found.curves, side)
        assert curve.saturation == pytest.approx(planted.saturation, abs=0.01)
        assert curve.slope == pytest.approx(planted.slope, abs=0.01)
    assert Accuracy.of(found, measured(truth)).worst < 1e-3


@pytest.mark.parametrize("truth", [DENSE, SPARSE], ids=["dense", "experts"])
def test_noise_comes_through_and_no_more(truth: CostModel) -> None:
    found = fit_model(truth.shape, measured(truth, noise=0.05))
    assert Accuracy.of(found, measured(truth)).p95 < 0.05


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from([0.0, 0.0, 1.0, 3.0]), min_size=11, max_size=11))
def test_a_staircase_is_found_and_never_descends(rises: list[float]) -> None:
    """Whatever the stairs: batches are predicted with contexts that nobody measured."""
    stairs = tuple(1e-11 * height for height in accumulate(rises, initial=0.0))
    truth = CostModel(LLAMA_8B, replace(PRICES, stairs=stairs))
    batches = [
        step(decode=decodes(batch, context)) for batch in range(1, 13) for context in (16, 2048)
    ]
    steps = [Measurement(load, truth.seconds(load)) for load in (*loads(), *batches)]
    found = fit_model(LLAMA_8B, steps)
    assert bool(found.prices.stairs) == any(rises)
    for context in (100, 4000):
        for batch in range(1, 31):
            load = step(decode=decodes(batch, context))
            assert found.seconds(load) == pytest.approx(truth.seconds(load), rel=0.02)


def test_steps_on_the_whole_device_alone_say_nothing_of_shares() -> None:
    whole = [each for each in measured(DENSE) if each.share == 1.0]
    found = fit_model(LLAMA_8B, whole)
    assert found.curves is None
    assert found.seconds(whole[0].load) > 0
    with pytest.raises(ValueError, match="no share of the device was measured"):
        found.seconds(whole[0].load, 0.5)
    with pytest.raises(ValueError, match="whole device"):
        fit_model(LLAMA_8B, [replace(each, share=0.5) for each in whole])


@settings(deadline=None)
@given(st.floats(0.15, 1.0), st.floats(0.0, 1.0))
def test_curves_are_one_at_one_and_found_again(knee: float, slope: float) -> None:
    curve = SpeedCurve(knee, slope)
    assert curve.speed(1.0) == pytest.approx(1.0)
    shares = [n / 16 for n in range(1, 17)]
    found = fit_curve(shares, [curve.speed(share) for share in shares])
    for share in shares:
        assert found.speed(share) == pytest.approx(curve.speed(share), rel=1e-2)


def test_one_share_gives_a_curve_through_it() -> None:
    found = fit_curve([0.5, 1.0], [0.7, 1.0])
    assert found.speed(0.5) == pytest.approx(0.7, rel=1e-3)
    assert fit_curve([0.5], [0.5]).speed(0.5) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(("knee", "slope"), [(0.0, 0.5), (1.1, 0.5), (0.5, -0.1), (0.5, 1.1)])
def test_curves_of_another_shape_are_refused(knee: float, slope: float) -> None:
    with pytest.raises(ValueError, match="speed curve"):
        SpeedCurve(knee, slope)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        SpeedCurve().speed(share)


@settings(deadline=None)
@given(arrays(np.float64, (12, 4), elements=st.floats(-3, 3)), st.integers(0, 1000))
def test_no_other_non_negative_answer_is_better(columns: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.normal(size=12)
    found = non_negative(columns, target)
    assert (found >= 0).all()
    error = np.linalg.norm(columns @ found - target)
    for scale in (1e-3, 0.1, 1.0):
        other = np.maximum(found + scale * rng.normal(size=(200, 4)), 0.0)
        assert (np.linalg.norm(other @ columns.T - target, axis=1) >= error - 1e-6).all()


def test_accuracy_needs_something_to_compare_with() -> None:
    with pytest.raises(ValueError, match="no measurement"):
        Accuracy.of(DENSE, [])
