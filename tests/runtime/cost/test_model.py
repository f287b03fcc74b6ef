"""The closed form: monotone in every number, whole on the whole device, sums as it says."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.support.cost import (
    CURVES,
    EXPERT_PRICES,
    EXPERTS,
    LLAMA_8B,
    PRICES,
    STAIR_PRICES,
    chunk,
    decodes,
    h100,
    loads,
    step,
)

from twinflow.runtime.cost.base import PhaseLoad, SegmentLoad, StepLoad
from twinflow.runtime.cost.model import CostModel, Prices
from twinflow.runtime.cost.terms import Terms

MODELS = [
    CostModel(LLAMA_8B, PRICES, CURVES),
    CostModel(LLAMA_8B, STAIR_PRICES, CURVES),
    CostModel(EXPERTS, EXPERT_PRICES, CURVES),
    h100(),
]
phases = st.builds(
    PhaseLoad, st.integers(0, 4096), st.integers(0, 1 << 24), st.integers(0, 1 << 20)
)
segments = st.builds(SegmentLoad, st.integers(1, 64), phases, phases)
steps = st.builds(
    StepLoad, st.lists(segments, min_size=1, max_size=3).map(tuple), st.integers(0, 256)
)
models = st.sampled_from(MODELS)
shares = st.floats(0.05, 1.0)


def grown(load: StepLoad, segment: int, phase: str, field: str, by: int) -> StepLoad:
    """The same load with one of its numbers raised."""
    found = list(load.segments)
    one = found[segment]
    old = getattr(one, phase)
    found[segment] = replace(one, **{phase: replace(old, **{field: getattr(old, field) + by})})
    return replace(load, segments=tuple(found))


@settings(deadline=None)
@given(models, steps, shares, st.data())
def test_more_of_anything_never_takes_less_time(
    model: CostModel, load: StepLoad, share: float, data: st.DataObject
) -> None:
    segment = data.draw(st.integers(0, len(load.segments) - 1))
    phase = data.draw(st.sampled_from(["prefill", "decode"]))
    field = data.draw(st.sampled_from(["rows", "pairs", "context"]))
    by = data.draw(st.integers(1, 1000))
    seconds = model.seconds(load, share)
    slack = 1 + 1e-12
    assert model.seconds(grown(load, segment, phase, field, by), share) * slack >= seconds
    assert model.seconds(replace(load, sampled=load.sampled + by), share) * slack >= seconds
    longer = (replace(load.segments[0], layers=load.segments[0].layers + 1), *load.segments[1:])
    assert model.seconds(replace(load, segments=longer), share) * slack >= seconds


@settings(deadline=None)
@given(models, steps, shares, shares)
def test_a_larger_share_is_never_slower(
    model: CostModel, load: StepLoad, one: float, other: float
) -> None:
    less, more = sorted((one, other))
    assert model.seconds(load, more) <= model.seconds(load, less) * (1 + 1e-12)
    assert model.seconds(load, 1.0) == model.seconds(load)


@settings(deadline=None)
@given(models, steps, shares)
def test_memory_use_is_a_part(model: CostModel, load: StepLoad, share: float) -> None:
    assert 0.0 <= model.seconds_and_use(load, share)[1] <= 1.0
    assert model.seconds_and_use(load, share)[0] == model.seconds(load, share)


@pytest.mark.parametrize("model", MODELS)
def test_the_formula_taken_apart_is_the_formula(model: CostModel) -> None:
    prices = model.prices
    for load in loads(model.shape.num_layers):
        terms = Terms.of(model.shape, load)
        total = terms.fixed_seconds(prices) + terms.compute_seconds(prices)
        total += terms.memory_seconds(prices)
        for duel in terms.duels:
            flop, byte = (getattr(prices, f"{duel.kind}_{side}") for side in ("flop", "byte"))
            total += max(flop * duel.flops, byte * duel.bytes)
        assert model.seconds(load) == pytest.approx(total, rel=1e-12)


def test_an_empty_step_takes_no_time() -> None:
    assert CostModel(LLAMA_8B, PRICES).seconds(StepLoad((), 0)) == 0.0


def test_layers_crossed_by_other_rows_are_paid_apart() -> None:
    """A prompt that crosses a quarter of the layers costs a quarter, and decodes all the same."""
    model = h100(EXPERTS)
    prompt, batch, none = chunk(0, 4096), decodes(32, 4096), PhaseLoad()
    quarter = StepLoad((SegmentLoad(12, prompt, batch), SegmentLoad(36, none, batch)), batch.rows)
    alone = model.seconds(step(decode=batch, layers=48))
    whole = model.seconds(StepLoad((SegmentLoad(48, prompt, batch),), batch.rows))
    assert model.seconds(quarter) - alone == pytest.approx((whole - alone) / 4)


def test_few_rows_are_bound_by_memory_and_many_by_arithmetic() -> None:
    """Llama-3.1-8B on an H100: 16 GB of weights at 3 TB/s, and 2048 rows at 798 TFLOP/s."""
    model = h100()
    assert model.seconds(step(decode=decodes(1, 1))) == pytest.approx(5.5e-3, rel=0.1)
    assert model.seconds(step(chunk(0, 2048))) == pytest.approx(37e-3, rel=0.1)
    assert model.seconds_and_use(step(decode=decodes(32, 2048)))[1] > 0.9
    assert model.seconds_and_use(step(chunk(0, 2048)))[1] < 0.2


def test_padding_is_paid() -> None:
    tiled = CostModel(
        dataclasses.replace(LLAMA_8B, row_tile=16),
        dataclasses.replace(PRICES, row=0.0, dense_byte=0.0),
    )
    times = [
        tiled.seconds(StepLoad((SegmentLoad(32, PhaseLoad(n), PhaseLoad()),), 0))
        for n in (1, 16, 17)
    ]
    assert times[0] == times[1] < times[2]


def test_stairs_are_climbed_by_rows_of_any_kind() -> None:
    line, stairs = CostModel(LLAMA_8B, PRICES), CostModel(LLAMA_8B, STAIR_PRICES)

    def extra(load: StepLoad) -> float:
        return stairs.seconds(load) - line.seconds(load)

    layers = LLAMA_8B.num_layers * LLAMA_8B.dense_flops
    assert [extra(step(decode=decodes(rows, 9))) == 0.0 for rows in (1, 2, 3)] == [1, 1, 0]
    for rows, height in ((4, 9e-12), (6, 2e-11), (600, 2e-11)):
        batch = step(decode=decodes(rows, 9))
        assert extra(batch) == pytest.approx(height * (layers + LLAMA_8B.head_flops))
        assert extra(step(chunk(0, rows))) == pytest.approx(height * layers), "one row is sampled"
    assert extra(step(chunk(0, 3), decodes(1, 9))) == pytest.approx(9e-12 * layers)


def test_a_price_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="dense_byte"):
        Prices(dense_byte=-1e-12)
    for stairs in ((-1e-12,), (1e-12, 0.0)):
        with pytest.raises(ValueError, match="never decrease"):
            Prices(stairs=stairs)
