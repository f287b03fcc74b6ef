"""Where requests go: tables of workers and decisions, and what holds for any workers."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinflow.cluster.router.filters import Available, HasRole, HasRoom
from twinflow.cluster.router.policy import Choice, RoutingPolicy
from twinflow.cluster.router.scorers import DecodeLoad, KVShortage, QueueAhead, UncachedPrompt
from twinflow.cluster.router.snapshot import RouteRequest, WorkerView
from twinflow.protos.errors import Unavailable

POLICY = RoutingPolicy()
REQUEST = RouteRequest(num_tokens=100, max_new_tokens=50)


def worker(name: str, **changes: Any) -> WorkerView:
    """A worker with plenty of room; its name's first letter is its role's."""
    role = {"p": "prefill", "d": "decode", "m": "mixed"}[name[0]]
    values = {"role": role, "block_size": 16, "free_blocks": 1000, **changes}
    return WorkerView(worker_id=name, **values)


def route(*workers: WorkerView, request: RouteRequest = REQUEST) -> str:
    """`prefill>decode`, or `>decode` if one worker does both."""
    found = POLICY.route(workers, request)
    return f"{found.prefill.worker_id if found.prefill else ''}>{found.decode.worker_id}"


class TestPools:
    """Which worker does which part."""

    def test_one_of_each(self) -> None:
        assert route(worker("p0"), worker("d0")) == "p0>d0"

    def test_a_mixed_worker_does_both(self) -> None:
        assert route(worker("m0")) == ">m0"

    def test_a_mixed_worker_may_compute_prompts_for_a_decode_worker(self) -> None:
        assert route(worker("m0", num_requests=9), worker("d0")) == "m0>d0"

    def test_the_least_busy_of_the_prefill_and_mixed_workers_computes_the_prompt(self) -> None:
        mixed = worker("m0", num_requests=9, queued_tokens=10)
        assert route(mixed, worker("p0", queued_tokens=20), worker("d0")) == "m0>d0"

    def test_without_prefill_workers_the_decode_worker_computes_the_prompt(self) -> None:
        assert route(worker("d0", num_requests=1), worker("d1")) == ">d1"

    def test_without_decode_workers_a_prefill_worker_decodes(self) -> None:
        assert route(worker("p0", num_requests=1), worker("p1")) == ">p1"

    def test_a_pool_that_drains_counts_as_empty(self) -> None:
        assert route(worker("p0"), worker("d0", draining=True)) == ">p0"
        assert route(worker("p0", up=False), worker("d0")) == ">d0"

    def test_a_worker_that_failed_the_request_is_not_asked_again(self) -> None:
        request = replace(REQUEST, excluded=frozenset({"d0"}))
        assert route(worker("p0"), worker("d0"), worker("d1"), request=request) == "p0>d1"
        assert route(worker("p0"), worker("d0"), request=request) == ">p0"

    @pytest.mark.parametrize(
        "workers",
        [
            [],
            [worker("d0", up=False)],
            [worker("m0", draining=True)],
        ],
    )
    def test_nobody_is_left(self, workers: list[WorkerView]) -> None:
        with pytest.raises(Unavailable, match="no worker is available"):
            POLICY.route(workers, REQUEST)


class TestDecode:
    """Room before load."""

    def test_least_load(self) -> None:
        assert route(worker("d0", num_requests=3), worker("d1", num_requests=2)) == ">d1"

    def test_equal_workers_by_name(self) -> None:
        assert route(worker("d1"), worker("d0")) == ">d0"

    def test_room_for_the_prompt_is_worth_any_load(self) -> None:
        full = worker("d0", free_blocks=6)  # 96 token slots
        assert route(full, worker("d1", num_requests=99, queued_tokens=10**6)) == ">d1"

    def test_room_that_was_promised_to_others_is_none(self) -> None:
        promised = worker("d0", free_blocks=20, promised_tokens=300)
        assert route(promised, worker("d1", num_requests=9)) == ">d1"

    def test_if_nobody_has_room_the_least_shortage_and_load_decide(self) -> None:
        assert route(worker("d0", free_blocks=0), worker("d1", free_blocks=5)) == ">d1"

    def test_shortage_later_on_is_weighed_against_load(self) -> None:
        """Both hold the prompt; 150 tokens in all fit only into the second."""
        short = worker("d0", free_blocks=7)
        assert route(short, worker("d1")) == ">d1"
        assert route(short, worker("d1", num_requests=1)) == ">d0"

    def test_a_prompt_that_a_mixed_worker_has_cached(self) -> None:
        request = replace(REQUEST, prefix_hits={"m1": 96})
        assert route(worker("m0"), worker("m1", num_requests=1), request=request) == ">m1"
        assert route(worker("m0"), worker("m1", num_requests=2), request=request) == ">m0"


class TestPrefill:
    """Queue and cached prefix, in tokens."""

    def test_shortest_queue(self) -> None:
        pool = worker("p0", queued_tokens=500), worker("p1", queued_tokens=400)
        assert route(*pool, worker("d0")) == "p1>d0"

    @pytest.mark.parametrize(("queue", "expected"), [(95, "p1>d0"), (97, "p0>d0")])
    def test_a_cached_prefix_is_worth_a_queue_of_its_length(
        self, queue: int, expected: str
    ) -> None:
        request = replace(REQUEST, prefix_hits={"p1": 96})
        pool = worker("p0"), worker("p1", queued_tokens=queue)
        assert route(*pool, worker("d0"), request=request) == expected

    def test_what_was_sent_counts_before_it_is_reported(self) -> None:
        assert route(worker("p0", assigned_tokens=50), worker("p1"), worker("d0")) == "p1>d0"

    def test_what_was_sent_and_reported_counts_once(self) -> None:
        both = worker("p0", assigned_tokens=300, queued_tokens=300)
        assert route(both, worker("p1", queued_tokens=400), worker("d0")) == "p0>d0"


def test_a_burst_is_spread_by_tokens() -> None:
    """A gateway that counts what it sends never piles a burst up on one worker."""
    sent = {"p0": 0, "p1": 0, "p2": 0}
    sizes = [700, *[100] * 20]
    for size in sizes:
        pool = [worker(name, assigned_tokens=tokens) for name, tokens in sent.items()]
        found = POLICY.route([*pool, worker("d0")], RouteRequest(num_tokens=size))
        assert found.prefill is not None
        sent[found.prefill.worker_id] += size
    assert max(sent.values()) - min(sent.values()) <= 100


views = st.builds(
    WorkerView,
    worker_id=st.sampled_from([f"w{number}" for number in range(5)]),
    role=st.sampled_from(["prefill", "decode", "mixed"]),
    up=st.booleans(),
    draining=st.booleans(),
    free_blocks=st.integers(0, 20),
    num_requests=st.integers(0, 5),
    queued_tokens=st.integers(0, 500),
    assigned_requests=st.integers(0, 5),
    assigned_tokens=st.integers(0, 500),
    promised_tokens=st.integers(0, 500),
)
requests = st.builds(
    RouteRequest,
    num_tokens=st.integers(1, 300),
    max_new_tokens=st.integers(0, 300),
    prefix_hits=st.dictionaries(st.sampled_from(["w0", "w1"]), st.integers(0, 300)),
    excluded=st.frozensets(st.sampled_from(["w0", "w1", "w2"])),
)


@given(
    workers=st.lists(views, max_size=5, unique_by=lambda view: view.worker_id),
    request=requests,
    order=st.randoms(use_true_random=False),
)
def test_any_decision(workers: list[WorkerView], request: RouteRequest, order: Any) -> None:
    """Somebody who can serves, whatever the order in which workers are named."""
    able = [w for w in workers if w.up and not w.draining and w.worker_id not in request.excluded]
    if not able:
        with pytest.raises(Unavailable):
            POLICY.route(workers, request)
        return
    found = POLICY.route(workers, request)
    assert found.decode in able
    if found.prefill is not None:
        assert found.prefill in able
        assert found.prefill.role != "decode"
        assert found.decode.role == "decode"
    elif any(w.role == "decode" for w in able) and any(w.role == "prefill" for w in able):
        assert found.decode.role == "mixed"
    shuffled = list(workers)
    order.shuffle(shuffled)
    assert POLICY.route(shuffled, request) == found


class TestParts:
    """Filters and scorers by themselves."""

    def test_available(self) -> None:
        keep = Available().keep
        assert keep(worker("d0"), REQUEST)
        assert not keep(worker("d0", up=False), REQUEST)
        assert not keep(worker("d0", draining=True), REQUEST)
        assert not keep(worker("d0"), RouteRequest(1, excluded=frozenset({"d0"})))

    def test_role(self) -> None:
        roles = HasRole("decode", "mixed")
        assert [roles.keep(worker(name), REQUEST) for name in ("p0", "d0", "m0")] == [
            False, True, True,
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("free", "promised", "room"), [(7, 0, True), (6, 0, False), (7, 13, False)]
    )
    def test_room(self, free: int, promised: int, room: bool) -> None:
        view = worker("d0", free_blocks=free, promised_tokens=promised)
        assert HasRoom().keep(view, REQUEST) is room

    def test_costs_are_tokens(self) -> None:
        view = worker(
            "d0",
            free_blocks=5,
            num_requests=2,
            assigned_requests=3,
            queued_tokens=40,
            assigned_tokens=30,
            promised_tokens=10,
        )
        assert QueueAhead().cost(view, REQUEST) == 40
        assert DecodeLoad(tokens_per_request=10).cost(view, REQUEST) == 30
        assert KVShortage().cost(view, REQUEST) == 100 + 50 + 10 - 5 * 16
        assert KVShortage().cost(worker("d0"), REQUEST) == 0
        hits = RouteRequest(100, prefix_hits={"d0": 64})
        assert UncachedPrompt().cost(view, hits) == 36

    def test_a_decision_can_be_replaced(self) -> None:
        policy = RoutingPolicy(decode=Choice(required=(HasRole("prefill"),)))
        assert policy.route([worker("p0"), worker("d0")], REQUEST).decode.worker_id == "p0"

    def test_preferences_give_way_requirements_do_not(self) -> None:
        choice = Choice(required=(Available(),), preferred=(HasRole("mixed"),))
        assert choice.choose([worker("d0")], REQUEST) == worker("d0")
        assert choice.choose([worker("d0"), worker("m0")], REQUEST) == worker("m0")
        assert choice.choose([worker("m0", up=False)], REQUEST) is None
