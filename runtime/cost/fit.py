"""Finds the prices and curves that explain measured steps best.

The error that is made small is the relative one, so that short steps count as much as long ones.
While it is known which side of every duel is the dearer one, the formula is linear in its prices
and least squares with non-negative coefficients solves it; the sides then follow from the prices,
and so on until neither changes. Where that ends depends on where it starts, so it starts from
several guesses of the operations per byte at which arithmetic takes over, and keeps the best.

What stairs add from each number of rows on is a price like the others, and therefore never below 0:
fitted stairs never decrease. There are a dozen of them, enough to explain noise, so they have to be
worth it: of fits with and without them the one with the least Bayesian information criterion is
kept (Schwarz, Estimating the dimension of a model, 1978), which charges for each price above 0.

First the prices, from the steps on the whole device; then for each smaller share how much slower
arithmetic and traffic are; then the curves through those.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

import numpy as np

from twinflow.runtime.cost.base import StepLoad, StepTimes
from twinflow.runtime.cost.curve import Floats, fit_curve
from twinflow.runtime.cost.least_squares import non_negative
from twinflow.runtime.cost.model import CostModel, Curves, Prices
from twinflow.runtime.cost.shape import ModelShape
from twinflow.runtime.cost.steps import STAIRS
from twinflow.runtime.cost.terms import COMPUTE, FIXED, MEMORY, Duel, Terms

_LINEAR = (*FIXED, *COMPUTE, *MEMORY)
_DUELS = ("dense_flop", "dense_byte", "expert_flop", "expert_byte")
_NAMES = (*_LINEAR, *_DUELS)
# Numbers of rows from which on matrices may cost more; what a single row costs is on the line.
_RISES = range(2, STAIRS + 1)
_ROUNDS = 30
# Guesses of operations per byte: all arithmetic, in between, all traffic.
_GUESSES = (0.0, *(2.0**power for power in range(9)), np.inf)
# Squared errors below this are all the same: none.
_EXACT = 1e-12


@dataclass(frozen=True, slots=True)
class Measurement:
    """A step that was run.

    Attributes:
        load: what was computed.
        seconds: how long it took; above 0.
        share: of the device's processors that computed it.
    """

    load: StepLoad
    seconds: float
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Relative errors of predictions: |predicted - measured| / measured.

    Attributes:
        steps: how many were compared.
        median: of the errors.
        p95: nearest rank.
        worst: the largest one.
    """

    steps: int
    median: float
    p95: float
    worst: float

    @classmethod
    def of(cls, times: StepTimes, measurements: Iterable[Measurement]) -> "Accuracy":
        """Compare predictions with measurements, of which there is at least one."""
        return cls.of_pairs(
            (times.seconds(each.load, each.share), each.seconds) for each in measurements
        )

    @classmethod
    def of_pairs(cls, seconds: Iterable[tuple[float, float]]) -> "Accuracy":
        """Compare seconds that were predicted with those that were measured."""
        errors = sorted(abs(predicted / measured - 1.0) for predicted, measured in seconds)
        if not errors:
            raise ValueError("there is no measurement to compare with")
        rank = -(-len(errors) * 95 // 100)
        return cls(len(errors), float(np.median(errors)), errors[rank - 1], errors[-1])


def fit_model(shape: ModelShape, measurements: Sequence[Measurement]) -> CostModel:
    """Fit prices and curves.

    Args:
        shape: of the model that was measured.
        measurements: of steps of all kinds on the whole device, and of some on smaller shares, if
            there are to be curves.

    Raises:
        ValueError: no step was measured on the whole device.
    """
    whole = [each for each in measurements if each.share == 1.0]
    if not whole:
        raise ValueError("a fit needs steps that were measured on the whole device")
    prices = _fit_prices(shape, whole)
    shares = sorted({each.share for each in measurements} - {1.0})
    if not shares:
        return CostModel(shape, prices)
    speeds = [
        _fit_speeds(shape, prices, [each for each in measurements if each.share == share])
        for share in shares
    ]
    curves = Curves(*(fit_curve(shares, [pair[side] for pair in speeds]) for side in (0, 1)))
    return CostModel(shape, prices, curves)


def _fit_prices(shape: ModelShape, measurements: Sequence[Measurement]) -> Prices:
    terms = [Terms.of(shape, each.load) for each in measurements]
    seconds = np.array([each.seconds for each in measurements])
    guesses = list(product(_GUESSES, _GUESSES if shape.num_experts else (0.0,)))
    fits = [
        min((_alternate(terms, seconds, guess, rises) for guess in guesses), key=lambda fit: fit[0])
        for rises in (range(0), _RISES)
    ]
    best = min(fits, key=lambda fit: _criterion(len(terms), *fit))[1]
    found = [float(price) for price in best]
    prices, stairs = dict(zip(_NAMES, found, strict=False)), found[len(_NAMES) :]
    return Prices(**prices, stairs=tuple(accumulate(stairs, initial=0.0)) if any(stairs) else ())


def _criterion(samples: int, squared_error: float, prices: Floats) -> float:
    """The Bayesian information criterion of a fit."""
    error = samples * math.log(max(squared_error, _EXACT) / samples)
    return error + np.count_nonzero(prices) * math.log(samples)


def _alternate(
    terms: Sequence[Terms], seconds: Floats, guess: tuple[float, float], rises: range
) -> tuple[float, Floats]:
    """The best fit met on the way from one guess.

    Returns its squared error, and prices by `_NAMES` and then by `rises`.
    """
    flops_per_byte = dict(zip(("dense", "expert"), guess, strict=True))
    sides = [
        tuple(duel.flops >= flops_per_byte[duel.kind] * duel.bytes for duel in each.duels)
        for each in terms
    ]
    steep = np.array([[each.flops_from(rows) for rows in rises] for each in terms])
    found: list[tuple[float, Floats]] = []
    for _ in range(_ROUNDS):
        columns = np.hstack([list(map(_row, terms, sides)), steep]) / seconds[:, None]
        solution = non_negative(columns, np.ones(len(seconds)))
        price = dict(zip(_NAMES, solution, strict=False))
        following = [tuple(_arithmetic_is_dearer(d, price) for d in each.duels) for each in terms]
        columns = np.hstack([list(map(_row, terms, following)), steep]) / seconds[:, None]
        found.append((float(((columns @ solution - 1.0) ** 2).sum()), solution))
        if following == sides:
            break
        sides = following
    return min(found, key=lambda fit: fit[0])


def _arithmetic_is_dearer(duel: Duel, price: dict[str, float]) -> bool:
    return price[f"{duel.kind}_flop"] * duel.flops >= price[f"{duel.kind}_byte"] * duel.bytes


def _row(terms: Terms, sides: Sequence[bool]) -> list[float]:
    """Amounts by `_NAMES`, the cheaper sides of all duels left out."""
    amounts = terms.amounts | dict.fromkeys(_DUELS, 0.0)
    for duel, arithmetic in zip(terms.duels, sides, strict=True):
        if arithmetic:
            amounts[f"{duel.kind}_flop"] += duel.flops
        else:
            amounts[f"{duel.kind}_byte"] += duel.bytes
    return [amounts[name] for name in _NAMES]


def _fit_speeds(
    shape: ModelShape, prices: Prices, measurements: Sequence[Measurement]
) -> tuple[float, float]:
    """Speed of arithmetic and of traffic on one share, as parts of those of the whole device."""
    terms = [Terms.of(shape, each.load) for each in measurements]
    seconds = np.array([each.seconds for each in measurements])
    rest = 1.0 - np.array([each.fixed_seconds(prices) for each in terms]) / seconds
    slow = np.ones(2)
    for _ in range(_ROUNDS):
        columns = np.array([_sums(each, prices, slow) for each in terms]) / seconds[:, None]
        # What no step shows (a model without arithmetic to speak of) stays as fast as it was.
        solved = np.where(columns.any(axis=0), non_negative(columns, rest), 1.0)
        following = np.maximum(solved, 1.0)
        if np.allclose(following, slow, rtol=1e-9):
            break
        slow = following
    return float(1.0 / slow[0]), float(1.0 / slow[1])


def _sums(terms: Terms, prices: Prices, slow: Floats) -> tuple[float, float]:
    """Seconds of arithmetic and of traffic that count at these slowdowns, before them."""
    compute, memory = terms.compute_seconds(prices), terms.memory_seconds(prices)
    for duel in terms.duels:
        arithmetic = getattr(prices, f"{duel.kind}_flop") * duel.flops
        traffic = getattr(prices, f"{duel.kind}_byte") * duel.bytes
        if slow[0] * arithmetic >= slow[1] * traffic:
            compute += arithmetic
        else:
            memory += traffic
    return compute, memory
