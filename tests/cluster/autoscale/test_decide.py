"""Pools become as large as they need to be, and do not flap, whatever is observed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.autoscaling import DECODE, POLICIES, Pools, most_in_an_hour, signals

from twinflow.cluster.autoscale.needs import FULLEST, strain
from twinflow.cluster.autoscale.policy import PoolPolicy, Tempo
from twinflow.cluster.autoscale.signals import PoolSignals, Signals
from twinflow.protos.errors import InvalidRequest


def test_a_pool_grows_at_once_to_what_the_load_needs() -> None:
    pools = Pools({"prefill": 1, "decode": 1})
    pools.see(signals(0.5, 3.0, sizes={"prefill": 1, "decode": 1}))
    assert pools.sizes["prefill"] == 1
    assert pools.sizes["decode"] > 3
    assert "without room" in pools.latest["decode"].why


def test_a_pool_shrinks_only_after_a_calm() -> None:
    pools = Pools({"prefill": 1, "decode": 4})
    pools.live(pools.tempo.calm_s, lambda now: signals(0.2, 0.5, sizes=now.sizes))
    assert pools.sizes["decode"] == 4
    assert pools.latest["decode"].held_back == "more was needed lately"
    pools.live(60.0, lambda now: signals(0.2, 0.5, sizes=now.sizes))
    assert pools.sizes["decode"] == 1


def test_a_short_lull_changes_nothing() -> None:
    pools = Pools({"prefill": 1, "decode": 3})
    for _ in range(6):
        pools.live(60.0, lambda now: signals(0.2, 2.6, sizes=now.sizes))
        pools.live(60.0, lambda now: signals(0.2, 0.5, sizes=now.sizes))
    assert {sizes["decode"] for _, sizes in pools.history} == {3}


def test_decisions_keep_their_distance() -> None:
    pools = Pools({"prefill": 1, "decode": 1})
    pools.see(signals(sizes=pools.sizes))
    pools.see(signals(0.5, 3.0, sizes=pools.sizes), seconds=pools.tempo.interval_s / 2)
    assert pools.sizes["decode"] == 1
    assert pools.latest == {}


def test_sizes_stay_within_their_bounds() -> None:
    narrow = {**POLICIES, "decode": PoolPolicy(minimum=2, maximum=3, tpot_s=0.04)}
    pools = Pools({"prefill": 1, "decode": 2}, narrow)
    pools.live(300.0, lambda now: signals(0.2, 0.1, sizes=now.sizes))
    assert pools.sizes["decode"] == 2
    pools.live(300.0, lambda now: signals(0.2, 9.0, sizes=now.sizes))
    assert pools.sizes["decode"] == 3
    assert pools.latest["decode"].held_back == "max is 3"


def test_the_slope_of_step_times_is_learnt() -> None:
    # 36 ms empty and 46 ms full: 40 ms are met up to two fifths, whatever the number of workers.
    pools = Pools({"prefill": 1, "decode": 4})
    loads = [1.0, 1.2, 1.5, 2.0] * 60
    for load in loads:
        full = load / pools.sizes["decode"]
        seen = signals(0.2, load, sizes=pools.sizes, tpot_s=0.036 + 0.01 * full)
        pools.see(seen)
    bound = pools.memory.pools["decode"].learnt.tpot.load_at(0.04)
    assert bound == pytest.approx(0.4, rel=0.05)


def test_a_pool_that_misses_ttft_under_load_grows() -> None:
    def load(now: Pools) -> Signals:
        workers = now.sizes["prefill"]
        return signals(1.3, 0.2, sizes=now.sizes, ttft_s=0.1 + strain(1.3 / workers, workers))

    pools = Pools({"prefill": 2, "decode": 1})
    pools.live(600.0, load)
    # Three are enough: the line through what two and three did says so.
    assert pools.sizes["prefill"] == 3


def test_workers_that_do_not_help_are_not_kept() -> None:
    pools = Pools({"prefill": 2, "decode": 1})
    pools.live(600.0, lambda now: signals(1.3, 0.2, sizes=now.sizes, ttft_s=0.9))
    assert max(sizes["prefill"] for _, sizes in pools.history) > 2
    assert pools.sizes["prefill"] == 2


def test_room_that_late_prompts_hold_is_prefills_shortage() -> None:
    """Decode is full of sequences that wait for their prompts, and more wait for its room."""
    pools = Pools({"prefill": 1, "decode": 2})
    late = Signals(
        pools={
            "prefill": PoolSignals(serving=1, busy=1.0, queue_s=40.0),
            "decode": PoolSignals(
                serving=2, held=2.0, running=2.0, receiving=38.0, waiting=100.0, waited=100.0
            ),
        },
        ttft_s=30.0,
        tpot_s=0.02,
        starts_per_s=1.0,
        places=8,
    )
    pools.see(late)
    assert pools.sizes["prefill"] >= 6
    assert pools.sizes["decode"] <= 2


def test_a_pool_that_regrets_shrinking_keeps_calm_longer() -> None:
    pools = Pools({"prefill": 1, "decode": 3})
    pools.live(120.0, lambda now: signals(0.2, 0.5, sizes=now.sizes))
    assert pools.sizes["decode"] == 1
    pools.live(30.0, lambda now: signals(0.2, 2.6, sizes=now.sizes))
    pools.live(2.0 * pools.tempo.calm_s, lambda now: signals(0.2, 0.5, sizes=now.sizes))
    assert pools.sizes["decode"] >= 3
    pools.live(3.0 * pools.tempo.calm_s, lambda now: signals(0.2, 0.5, sizes=now.sizes))
    assert pools.sizes["decode"] == 1


def test_waiting_for_room_to_decode_is_not_laid_to_prefill() -> None:
    pools = Pools({"prefill": 2, "decode": 1}, {"prefill": POLICIES["prefill"]})
    pools.live(120.0, lambda now: signals(1.3, 2.0, sizes=now.sizes, ttft_s=0.9))
    assert pools.sizes["prefill"] == 2


def test_places_go_to_whoever_lacks_most() -> None:
    pools = Pools({"prefill": 3, "decode": 3})
    pools.see(signals(0.6, 5.0, sizes=pools.sizes, places=6))
    assert pools.sizes == {"prefill": 1, "decode": 5}
    assert pools.latest["decode"].held_back == "there is room for 6 workers"


def test_a_trade_that_helps_nobody_is_not_made() -> None:
    pools = Pools({"prefill": 3, "decode": 3})
    pools.see(signals(4.0, 3.2, sizes=pools.sizes, places=6))
    assert pools.sizes == {"prefill": 3, "decode": 3}


@pytest.mark.parametrize(
    ("role", "policy", "field"),
    [
        ("prefill", PoolPolicy(minimum=0, maximum=1, ttft_s=1.0), "min"),
        ("prefill", PoolPolicy(minimum=3, maximum=2, ttft_s=1.0), "min"),
        ("prefill", PoolPolicy(minimum=1, maximum=99, ttft_s=1.0), "min"),
        ("prefill", PoolPolicy(minimum=1, maximum=2), "ttft_ms"),
        ("prefill", PoolPolicy(minimum=1, maximum=2, ttft_s=1.0, tpot_s=1.0), "tpot_ms"),
        ("decode", PoolPolicy(minimum=1, maximum=2, ttft_s=1.0, tpot_s=1.0), "ttft_ms"),
        ("decode", PoolPolicy(minimum=1, maximum=2, tpot_s=float("nan")), "tpot_ms"),
        ("mixed", PoolPolicy(minimum=1, maximum=2, ttft_s=-1.0), "ttft_ms"),
    ],
)
def test_what_cannot_be_kept_to_is_refused(role: str, policy: PoolPolicy, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        policy.check(role, 8)  # type: ignore[arg-type]  # parametrised
    assert caught.value.param == field


_LOADS = st.floats(0.0, 20.0)


@st.composite
def observed(draw: st.DrawFn) -> Signals:
    """Anything that might be observed, and more."""
    pools = {}
    for role in ("prefill", "decode"):
        pools[role] = PoolSignals(
            serving=draw(st.integers(0, 9)),
            busy=draw(_LOADS),
            queue_s=draw(_LOADS),
            held=draw(_LOADS),
            running=draw(st.integers(0, 300)),
            receiving=draw(st.integers(0, 300)),
            waiting=draw(st.integers(0, 300)),
        )
    latency = st.none() | st.floats(0.0, 10.0)
    return Signals(
        pools=pools,  # type: ignore[arg-type]  # roles
        ttft_s=draw(latency),
        tpot_s=draw(latency),
        places=draw(st.none() | st.integers(2, 16)),
    )


@settings(max_examples=10, deadline=None)
@given(
    kinds=st.lists(st.tuples(observed(), st.integers(1, 40)), min_size=2, max_size=6),
    turns=st.integers(2, 12),
    calm_s=st.sampled_from([5.0, 60.0]),
    order=st.randoms(use_true_random=False),
)
def test_no_pool_turns_more_often_than_it_may(
    kinds: list[tuple[Signals, int]], turns: int, calm_s: float, order: object
) -> None:
    """Whatever is observed, in whatever order, and however long each of it lasts."""
    tempo = Tempo(calm_s=calm_s, turns_per_hour=turns)
    pools = Pools({"prefill": 2, "decode": 2}, tempo=tempo)
    while pools.now < 1.5 * 3600.0:
        seen, times = order.choice(kinds)  # type: ignore[attr-defined]  # a Random
        for _ in range(times):
            pools.see(seen)
    for role, policy in POLICIES.items():
        assert most_in_an_hour(pools.turns(role)) <= turns
        assert all(
            policy.minimum <= sizes[role] <= policy.maximum for _, sizes in pools.history[1:]
        )


def test_a_load_that_swings_is_stopped_by_the_bound_alone() -> None:
    """The bound binds: without it this load would turn the pool every 10 s."""
    tempo = Tempo(calm_s=1.0, turns_per_hour=6)
    pools = Pools({"prefill": 1, "decode": 1}, tempo=tempo)
    for number in range(1500):
        pools.see(signals(0.2, 4.0 if number % 2 else 0.3, sizes=pools.sizes))
    assert most_in_an_hour(pools.turns("decode")) == 6
    # Whoever may not turn stays large.
    assert pools.sizes["decode"] >= 4.0 / FULLEST
    assert "turned" in pools.latest["decode"].held_back or pools.latest["decode"].after >= 5
    assert DECODE.maximum >= pools.sizes["decode"]
