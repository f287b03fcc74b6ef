"""Percentiles and the binomial sample-size rule."""

import math

import pytest
from benchmarks.load.stats import (
    chance_of_at_most,
    distribution,
    median,
    percentile,
    proven_bound,
    proves,
    requests_needed,
)


@pytest.mark.parametrize(
    ("q", "expected"), [(1, 1.0), (50, 50.0), (90, 90.0), (99, 99.0), (99.5, 100.0), (100, 100.0)]
)
def test_percentiles_are_nearest_rank(q: float, expected: float) -> None:
    assert percentile([float(value) for value in range(1, 101)], q) == expected


def test_percentile_is_not_moved_by_binary_rounding() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 7) == 7.0  # 0.07 * 100 exceeds 7 in binary


def test_percentile_of_one_value_is_that_value() -> None:
    assert percentile([3.0], 1) == percentile([3.0], 99) == 3.0


def test_distribution_summarises_unsorted_values() -> None:
    found = distribution([5.0, 1.0, 3.0])
    assert found is not None
    assert (found.count, found.mean, found.p50, found.p99, found.max) == (3, 3.0, 3.0, 5.0, 5.0)


def test_distribution_of_nothing_is_nothing() -> None:
    assert distribution([]) is None


def test_median_of_even_and_odd_counts() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5


@pytest.mark.parametrize(
    ("q", "needed"), [(90.0, (44, 64, 81)), (99.0, (459, 662, 838)), (99.9, (4603,))]
)
def test_requests_needed_for_a_claim_at_99_percent(q: float, needed: tuple[int, ...]) -> None:
    assert tuple(requests_needed(misses, q) for misses in range(len(needed))) == needed


def test_chance_agrees_with_exact_binomial() -> None:
    exact = sum(math.comb(30, k) * 0.1**k * 0.9 ** (30 - k) for k in range(4))
    assert chance_of_at_most(3, 30, 0.1) == pytest.approx(exact, rel=1e-12)


def test_chance_of_at_most_all_is_one() -> None:
    assert chance_of_at_most(5, 5, 0.1) == pytest.approx(1.0)


def test_one_request_too_few_proves_nothing() -> None:
    assert proves(0, 459, 99)
    assert not proves(0, 458, 99)


def test_proven_bound_is_the_largest_value_at_459_and_the_second_at_662() -> None:
    assert proven_bound([float(v) for v in range(458)], 99) is None
    assert proven_bound([float(v) for v in range(459)], 99) == 458.0
    assert proven_bound([float(v) for v in range(662)], 99) == 660.0


def test_proven_bound_counts_a_lost_request_as_infinite() -> None:
    assert proven_bound([1.0] * 458 + [math.inf], 99) == math.inf
    assert proven_bound([1.0] * 661 + [math.inf], 99) == 1.0
