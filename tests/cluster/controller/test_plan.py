"""Decisions over a snapshot: they converge, one at a time, and never take what is needed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.cluster_model import World, cluster, serving, worker

from twinflow.cluster.controller import events
from twinflow.cluster.controller.commands import (
    Command,
    DrainWorker,
    FlipWorker,
    RestartAll,
    Scale,
    wish,
)
from twinflow.cluster.controller.plan import (
    GIVE_UP_AFTER,
    Drain,
    Fence,
    Flip,
    Patience,
    Start,
    Stop,
    is_settled,
    plan,
    problem_of,
)
from twinflow.cluster.controller.state import ROLES, ClusterState, Desired
from twinflow.protos.errors import InvalidRequest


def world(places: int | None = None, **sizes: int) -> World:
    state, desired = serving(**sizes)
    return World(state, desired, places)


def ask(where: World, command: Command) -> None:
    where.desired = wish(where.state, where.desired, command)
    where.happen(events.Asked())


def test_nothing_to_do() -> None:
    state, desired = serving(prefill=2, decode=3)
    assert plan(state, desired) is None
    assert is_settled(state, desired)


class TestGrowing:
    """Workers that are missing are started, one at a time."""

    def test_one_after_the_other(self) -> None:
        where = world(prefill=1, decode=1)
        ask(where, Scale("decode", 3))
        assert where.step() == Start("decode-1", "decode")
        assert where.step() is None
        assert not is_settled(where.state, where.desired)
        where.progress()
        assert where.step() == Start("decode-2", "decode")
        where.settle()
        assert where.sizes == {"prefill": 1, "decode": 3, "mixed": 0}
        assert is_settled(where.state, where.desired)

    def test_an_empty_pool_comes_first(self) -> None:
        state, _ = serving(prefill=3)
        desired = Desired(sizes={"prefill": 4, "decode": 1, "mixed": 0})
        assert plan(state, desired) == Start("decode-0", "decode")

    def test_names_of_workers_that_are_gone_come_back_in_another_life(self) -> None:
        where = world(prefill=1, decode=2)
        where.kill("decode-0")
        where.settle()
        assert where.state.workers["decode-0"].epoch == 4

    def test_not_without_room(self) -> None:
        where = world(places=2, prefill=1, decode=1)
        ask(where, Scale("decode", 2))
        where.settle()
        assert where.actions == []
        assert problem_of(where.state, where.desired, "decode") == (
            "there is no room for another worker"
        )

    def test_a_start_that_is_no_longer_wanted_is_stopped(self) -> None:
        where = world(prefill=1, decode=1)
        ask(where, Scale("decode", 2))
        where.step()
        ask(where, Scale("decode", 1))
        assert where.step() == Stop("decode-1", 3, 0.0)
        where.settle()
        assert where.sizes["decode"] == 1
        assert where.served == 2

    def test_one_that_does_not_start_in_time_is_ended(self) -> None:
        young = worker("decode-1", 3, phase="starting", since=0.0, detail="loading weights")
        state = cluster(worker("prefill-0", 1), worker("decode-0", 2), young, now=601.0)
        action = plan(state, Desired(sizes={"prefill": 1, "decode": 2}))
        why = "decode-1 was still starting after 600 s: loading weights"
        assert action == Fence("decode-1", 3, why)


class TestShrinking:
    """Workers that are too many leave, one at a time, the youngest first."""

    def test_one_after_the_other(self) -> None:
        where = world(prefill=1, decode=3)
        ask(where, Scale("decode", 1, "migrate"))
        assert where.step() == Drain("decode-2", 4, "migrate")
        assert where.step() is None  # until every gateway knows
        where.progress()
        assert where.step() == Stop("decode-2", 4, Patience().leases_s)
        assert where.step() is None
        where.progress()
        assert where.step() == Drain("decode-1", 3, "migrate")
        where.settle()
        assert where.sizes == {"prefill": 1, "decode": 1, "mixed": 0}

    def test_a_gateway_that_does_not_answer_is_not_waited_for_long(self) -> None:
        leaving = worker("decode-1", 3, phase="leaving", since=0.0)
        others = worker("prefill-0", 1), worker("decode-0", 2)
        desired = Desired(sizes={"prefill": 1, "decode": 1})
        assert plan(cluster(*others, leaving, now=9.0), desired) is None
        assert isinstance(plan(cluster(*others, leaving, now=11.0), desired), Stop)

    def test_one_that_does_not_end_in_time_is_ended(self) -> None:
        slow = worker("decode-1", 3, phase="stopping", since=0.0, mode="migrate")
        state = cluster(worker("prefill-0", 1), worker("decode-0", 2), slow, now=51.0)
        action = plan(state, Desired(sizes={"prefill": 1, "decode": 1}))
        assert action == Fence("decode-1", 3, "decode-1 was still stopping after 50 s")

    def test_a_worker_that_moves_is_cheaper_than_one_that_ends(self) -> None:
        state, desired = serving(prefill=2, decode=1)
        wanted = Desired(sizes={"prefill": 1, "decode": 2})
        assert plan(state, wanted) == Flip("prefill-1", 2, "decode")
        assert plan(state, desired) is None

    def test_but_not_where_roles_are_for_life(self) -> None:
        state, _ = serving(prefill=2, decode=1)
        fixed = cluster(*state.workers.values(), no_flips="latents")
        action = plan(fixed, Desired(sizes={"prefill": 1, "decode": 2}))
        assert action == Start("decode-1", "decode")


class TestFlipping:
    """A role is what a worker is used for."""

    def test_both_ways(self) -> None:
        where = world(prefill=2, decode=1)
        ask(where, FlipWorker("prefill-0", "decode"))
        assert where.step() == Flip("prefill-0", 1, "decode")
        assert is_settled(where.state, where.desired)
        ask(where, FlipWorker("prefill-0", "prefill"))
        where.settle()
        assert where.sizes == {"prefill": 2, "decode": 1, "mixed": 0}
        assert len(where.actions) == 2

    def test_again_is_nothing(self) -> None:
        where = world(prefill=2, decode=1)
        for _ in range(2):
            ask(where, FlipWorker("prefill-0", "decode"))
        where.settle()
        assert len(where.actions) == 1

    def test_a_worker_that_dies_first_is_replaced_in_its_new_pool(self) -> None:
        where = world(prefill=2, decode=1)
        ask(where, FlipWorker("prefill-0", "decode"))
        where.kill("prefill-0")
        where.settle()
        assert where.sizes == {"prefill": 1, "decode": 2, "mixed": 0}


class TestReplacing:
    """A worker leaves when its successor serves, where there is room for both."""

    def test_the_successor_comes_first(self) -> None:
        where = world(prefill=1, decode=1)
        ask(where, DrainWorker("decode-0", "migrate", replace=True))
        where.settle()
        kinds = [type(action) for action in where.actions]
        assert kinds == [Start, Drain, Stop]
        assert where.served == 2
        assert [one.worker_id for one in where.state.of_phase("serving")] == [
            "prefill-0",
            "decode-1",
        ]

    def test_without_room_the_others_serve_meanwhile(self) -> None:
        where = world(places=2, prefill=1, decode=1)
        ask(where, RestartAll())
        where.settle()
        assert where.sizes == {"prefill": 1, "decode": 1, "mixed": 0}
        assert where.served == 1
        assert min(one.epoch for one in where.state.workers.values()) == 3

    def test_everything_is_replaced_once(self) -> None:
        where = world(prefill=2, decode=2, mixed=1)
        ask(where, RestartAll("migrate"))
        where.settle()
        starts = [action for action in where.actions if isinstance(action, Start)]
        assert len(starts) == 5
        assert min(one.epoch for one in where.state.workers.values()) > 5
        assert where.served == 5

    def test_a_successor_that_does_not_come_keeps_the_old_one(self) -> None:
        where = world(prefill=1, decode=1)
        ask(where, DrainWorker("decode-0", replace=True))
        for _ in range(GIVE_UP_AFTER):
            where.tick(60.0)
            assert isinstance(where.step(), Start)
            where.kill("decode-1")
            where.step()
        where.settle()
        assert where.sizes == {"prefill": 1, "decode": 1, "mixed": 0}
        problem = problem_of(where.state, where.desired, "decode")
        assert problem == "gave up after 5 failures: killed"


class TestDeaths:
    """The dead are replaced, but not for ever."""

    def test_what_is_left_is_ended_before_the_successor_starts(self) -> None:
        where = world(prefill=1, decode=1)
        where.kill("decode-0")
        assert where.step() == Fence("decode-0", 2, "killed")
        assert where.step() == Start("decode-0", "decode")

    def test_each_failure_makes_the_next_pause_longer(self) -> None:
        where = world(prefill=1, decode=1)
        pauses = []
        where.kill("decode-0")
        where.step()
        while where.state.failures_of("decode").count < GIVE_UP_AFTER:
            began = where.state.now
            while not isinstance(where.step(), Start):
                assert where.state.now - began < 100.0
            pauses.append(where.state.now - began)
            where.kill("decode-0")
            where.step()
        assert pauses == pytest.approx([0.2, 1.0, 2.0, 4.0, 8.0], abs=0.5)
        where.settle()
        assert where.sizes["decode"] == 0
        ask(where, Scale("decode", 1))
        where.settle()
        assert where.sizes["decode"] == 1

    def test_the_pause_of_one_that_served_runs_from_when_it_began_to(self) -> None:
        state = cluster(worker("decode-0", 1, since=100.0), now=100.5)
        early = events.apply(state, events.Died("decode-0", 1, "killed"))
        assert early.failures_of("decode").not_before == 101.0
        state = events.apply(state, events.Ticked(120.0, {}))
        late = events.apply(state, events.Died("decode-0", 1, "killed"))
        assert late.failures_of("decode").count == 1
        assert late.failures_of("decode").not_before < late.now

    def test_a_worker_that_lasted_is_replaced_at_once_every_time(self) -> None:
        where = world(prefill=1, decode=1)
        for _ in range(2 * GIVE_UP_AFTER):
            where.settle()
            where.tick(100.0)
            where.kill("decode-0")
        where.settle()
        assert where.sizes["decode"] == 1

    def test_only_one_that_came_after_a_failure_and_lasts_ends_the_row(self) -> None:
        old, dead = worker("decode-0", 2), worker("decode-1", 3, since=0.0)
        state = cluster(worker("prefill-0", 1), old, dead, now=10.0)
        for event in (
            events.Died("decode-1", 3, "killed"),
            events.Ended("decode-1", 3),
            events.Ticked(200.0, {}),
        ):
            state = events.apply(state, event)
        assert state.failures_of("decode").count == 1
        state = events.apply(state, events.Started("decode-1", "decode"))
        state = events.apply(
            state, events.Ready("decode-1", state.workers["decode-1"].epoch, "address")
        )
        assert events.apply(state, events.Ticked(229.0, {})).failures_of("decode").count == 1
        assert events.apply(state, events.Ticked(231.0, {})).failures_of("decode").count == 0

    def test_while_another_one_leaves(self) -> None:
        where = world(prefill=1, decode=3)
        ask(where, Scale("decode", 2))
        where.step()
        where.kill("prefill-0")
        assert isinstance(where.step(), Fence)
        assert where.step() == Start("prefill-0", "prefill")

    def test_one_that_was_to_leave_is_not_replaced(self) -> None:
        where = world(prefill=1, decode=2)
        ask(where, Scale("decode", 1))
        where.step()
        where.kill("decode-1")
        where.settle()
        assert where.sizes == {"prefill": 1, "decode": 1, "mixed": 0}
        assert not [action for action in where.actions if isinstance(action, Start)]


def test_late_news_of_an_earlier_life_change_nothing() -> None:
    state, _ = serving(prefill=1, decode=1)
    for event in (
        events.Died("decode-0", 1, "late"),
        events.Ended("decode-0", 7),
        events.Ready("nobody", 2, "a"),
    ):
        assert events.apply(state, event) == state


class TestWishes:
    """What cannot be done is refused, with a reason."""

    @pytest.mark.parametrize(
        ("command", "reason"),
        [
            (Scale("decode", 0), "a decode worker is needed"),
            (Scale("decode", 1025), "0 to 1024"),
            (FlipWorker("prefill-0", "decode"), "a prefill worker is needed"),
            (FlipWorker("decode-7", "prefill"), "there are decode-0, decode-1, prefill-0"),
            (DrainWorker("prefill-0"), "a prefill worker is needed"),
        ],
    )
    def test_refused(self, command: Command, reason: str) -> None:
        state, desired = serving(prefill=1, decode=2)
        with pytest.raises(InvalidRequest, match=reason):
            wish(state, desired, command)

    def test_workers_that_do_not_serve(self) -> None:
        where = world(prefill=2, decode=2)
        ask(where, DrainWorker("decode-0"))
        with pytest.raises(InvalidRequest, match="asked to leave already"):
            ask(where, DrainWorker("decode-0"))
        where.step()
        with pytest.raises(InvalidRequest, match="Worker decode-0 is leaving"):
            ask(where, FlipWorker("decode-0", "prefill"))

    def test_the_only_worker_without_room_for_another(self) -> None:
        where = world(places=1, mixed=1)
        where.tick()
        for command in (RestartAll(), DrainWorker("mixed-0", replace=True)):
            with pytest.raises(InvalidRequest, match="no room for another"):
                ask(where, command)

    def test_roles_that_are_for_life(self) -> None:
        state, desired = serving(prefill=2, decode=1)
        fixed = cluster(*state.workers.values(), no_flips="Latents are shared.")
        with pytest.raises(InvalidRequest, match="Latents are shared"):
            wish(fixed, desired, FlipWorker("prefill-0", "decode"))

    def test_every_change_is_a_version_and_old_wishes_are_forgotten(self) -> None:
        where = world(prefill=2, decode=2)
        ask(where, DrainWorker("decode-0", replace=True))
        where.settle()
        ask(where, FlipWorker("prefill-0", "decode"))
        assert (where.desired.version, where.desired.leaving) == (3, {})


COMMANDS = st.one_of(
    st.builds(
        Scale, st.sampled_from(ROLES), st.integers(0, 4), st.sampled_from(["finish", "migrate"])
    ),
    st.builds(
        FlipWorker,
        st.sampled_from([f"{role}-{n}" for role in ROLES for n in range(3)]),
        st.sampled_from(ROLES),
    ),
    st.builds(
        DrainWorker,
        st.sampled_from([f"{role}-{n}" for role in ROLES for n in range(3)]),
        st.just("finish"),
        st.booleans(),
    ),
    st.builds(RestartAll),
)
# What may happen between two looks of the controller.
HAPPENINGS = st.lists(
    st.one_of(COMMANDS, st.sampled_from(["kill", "progress", "wait"])), min_size=1, max_size=25
)


@given(
    happenings=HAPPENINGS,
    prefill=st.integers(1, 3),
    decode=st.integers(1, 3),
    mixed=st.integers(0, 2),
    extra=st.one_of(st.none(), st.integers(0, 3)),
    pick=st.randoms(use_true_random=False),
)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_it_ends_as_wanted(
    happenings: list[Any], prefill: int, decode: int, mixed: int, extra: int | None, pick: Any
) -> None:
    """And on the way nothing that serves is taken away but one at a time, and never the last."""
    places = None if extra is None else prefill + decode + mixed + extra
    where = world(places, prefill=prefill, decode=decode, mixed=mixed)
    for happening in happenings:
        if happening == "kill" and where.state.workers:
            where.kill(pick.choice(sorted(where.state.workers)))
        elif happening == "progress":
            where.progress()
        elif not isinstance(happening, str):
            try:
                ask(where, happening)
            except InvalidRequest:
                continue
        before = len(where.state.of_phase("serving"))
        action = where.step()
        if isinstance(action, Drain):
            assert before > 1
    # An operator looks after it: what was given up is tried again.
    where.happen(events.Asked())
    began = len(where.actions)
    where.settle()
    assert_as_wanted(where.state, where.desired, places)
    # Bounded: each worker that was there, and each that is wanted, is touched a few times at most.
    assert len(where.actions) - began <= 4 * (len(where.state.workers) + 12)
    done = len(where.actions)
    where.settle()
    assert len(where.actions) == done  # at rest


def assert_as_wanted(state: ClusterState, desired: Desired, places: int | None) -> None:
    wanted = sum(desired.sizes.values())
    if places is None or wanted <= places:
        assert is_settled(state, desired), (state.workers, desired)
    else:
        assert len(state.of_phase("serving")) == places
