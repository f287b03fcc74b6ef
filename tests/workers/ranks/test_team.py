"""Ranks that meet, take steps together, and end together; threads in the place of processes."""

import asyncio
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.support.engines import FakeExecutor, create_engine, create_request
from tests.support.rank_teams import (
    LAYOUT,
    PATIENCE_S,
    WORKER,
    SumRunner,
    end_in_order,
    meeting,
    rank_threads,
    team,
    team_config,
)

from twinflow.parallel.links.deadline import Deadline
from twinflow.protos.errors import ConfigError, EngineError, RankLost, TwinflowError
from twinflow.runtime.executor import LayersDone, Work
from twinflow.runtime.kv_progress import KVProgress
from twinflow.runtime.model_runner import SequenceRows
from twinflow.runtime.outputs import SampledRun
from twinflow.workers.engine_loop import EngineLoop
from twinflow.workers.ranks.address import connect, listen, new_address
from twinflow.workers.ranks.follower import Follower, FollowerLoop
from twinflow.workers.ranks.frames import step_frame
from twinflow.workers.ranks.leader import Leader


@pytest.fixture(autouse=True)
def nobody_is_watched_afterwards() -> Iterator[None]:
    yield
    assert rank_threads() == []


def rows(*token_ids: int, held_as: str | None = None) -> SequenceRows:
    return SequenceRows(token_ids, 0, [1, 2, 3], samples=True, held_as=held_as)


def test_all_ranks_agree_on_the_smallest_number_of_blocks() -> None:
    with meeting(3) as (leader, followers):
        assert leader.num_blocks == 101
        assert [one.num_blocks for one in followers] == [101, 101]


@pytest.mark.parametrize("size", [2, 4])
def test_every_rank_computes_every_step(size: int) -> None:
    with team(size) as made:
        weight = sum(range(1, size + 1))
        runner = made.runner
        for step in range(3):
            logits = runner.forward([rows(step, 5), rows(7)])
            assert torch.equal(logits, torch.tensor([[step + 5.0], [7.0]]) * weight)
        made.leader.close()
        assert made.outcomes() == [None] * (size - 1)
        assert [loop.steps for loop in made.loops] == [3] * (size - 1)
    seen = [[tuple(group.token_ids) for group in step] for step in made.runners[-1].steps]
    assert seen == [[(0, 5), (7,)], [(1, 5), (7,)], [(2, 5), (7,)]]


def test_followers_verify_the_rows_that_rank_0_verifies() -> None:
    proposed = SequenceRows((5, 6, 7), 4, [1, 2, 3], samples=True, sequence="a", drafted=2)
    with team(2) as made:
        made.runner.forward([proposed])
        made.leader.close()
        assert made.outcomes() == [None]
    ((seen,),) = made.runners[-1].steps
    assert (tuple(seen.token_ids), seen.start, seen.drafted) == ((5, 6, 7), 4, 2)


def test_followers_hear_of_the_kv_of_held_sequences_as_rank_0_does() -> None:
    heard: list[KVProgress] = []
    with meeting(2) as (leader, followers), ThreadPoolExecutor(1) as pool:
        loop = FollowerLoop(SumRunner(followers[0].ranks), followers[0], heard.append)
        end = pool.submit(loop.run)
        own = SumRunner(leader.ranks)
        spans: list[tuple[int, int]] = []
        leader.tell(step_frame(1, [rows(4), rows(5, 6, held_as="r-9/0")], 2))
        own.forward([rows(4), rows(5, 6)], lambda *span: spans.append(span), 2)
        leader.close()
        assert end.exception(PATIENCE_S) is None
    assert spans == [(0, 2), (2, 4)]
    assert [(p.first_layer, p.end_layer) for p in heard] == spans
    for progress in heard:
        assert progress.request_id == "r-9/0"
        assert (progress.token_start, progress.token_end) == (0, 2)
        assert list(progress.blocks) == [1, 2, 3]


def test_followers_hear_only_of_layers_that_held_sequences_cross() -> None:
    heard: list[KVProgress] = []
    with meeting(2) as (leader, followers), ThreadPoolExecutor(1) as pool:
        loop = FollowerLoop(SumRunner(followers[0].ranks), followers[0], heard.append)
        end = pool.submit(loop.run)
        own = SumRunner(leader.ranks)
        for number, layers in enumerate([(0, 1), (1, 3), (3, 4)], 1):
            group = SequenceRows([5, 6], 0, [1], False, 2, "r-9/0", *layers, sequence="r-9/0")
            leader.tell(step_frame(number, [group], 2))
            own.forward([group])
        leader.close()
        assert end.exception(PATIENCE_S) is None
    assert [(p.first_layer, p.end_layer) for p in heard] == [(0, 2), (2, 4)]


def test_followers_forget_what_rank_0_forgets() -> None:
    with team(2) as made:
        runner = made.runner
        assert runner.forget("r/1")
        assert runner.forget("r/2")
        runner.forward([rows(1)])
        runner.forward([rows(1)])
        made.leader.close()
        made.outcomes()
    for one in made.runners:
        assert one.forgotten == ["r/1", "r/2"]


def test_orders_and_reports_travel_beside_the_steps() -> None:
    with team(3) as made:
        reports: dict[int, bytes] = {}
        done = threading.Event()

        def note(rank: int, body: bytes) -> None:
            reports[rank] = body
            if len(reports) == 2:
                done.set()

        made.leader.on_report("echo", note)
        with pytest.raises(ValueError, match="reports of kind 'echo' have a listener"):
            made.leader.on_report("echo", note)
        for follower in made.followers:
            follower.on_order("echo", lambda body, one=follower: one.report("echo", body[::-1]))  # type: ignore[misc]
        made.leader.order("echo", b"abc")
        assert done.wait(PATIENCE_S)
        assert reports == {1: b"cba", 2: b"cba"}
        made.leader.order("unheard of", b"")
        message = "sent an order of kind 'unheard of', which nobody takes"
        for outcome in made.outcomes():
            assert message in str(outcome)


# --- refusals ---------------------------------------------------------------------------------


def refused(**changes: object) -> tuple[str, str]:
    """What the follower and the leader are told when a follower's config differs."""
    address = new_address(WORKER)
    layout = str(changes.pop("layout", LAYOUT))
    with ThreadPoolExecutor(1) as pool:
        leading = pool.submit(Leader.meet, team_config(0, 2, address, meet_s=2.0), LAYOUT, 10)
        with pytest.raises(TwinflowError) as follower_error:
            settings = {"rank": 1, "size": 2, "address": address} | changes
            Follower.join(team_config(**settings), layout, 10)  # type: ignore[arg-type]
        leader_error = leading.exception(PATIENCE_S)
    assert isinstance(follower_error.value, ConfigError)
    return str(follower_error.value), str(leader_error)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token": "wrong"}, "wrong deployment token"),
        ({"epoch": 2}, "this is worker mixed-0 (epoch 1), not mixed-0 (epoch 2)"),
        ({"rank": 3, "size": 4}, "there is no rank 3 of 4, only 1..1"),
    ],
)
def test_a_rank_that_is_not_expected_is_refused_and_the_right_one_waited_for(
    changes: dict[str, object], reason: str
) -> None:
    follower, leader = refused(**changes)
    assert reason in follower
    assert leader == "rank 1 of mixed-0 did not come within 2 s"


def test_a_rank_with_another_layout_ends_the_start_at_once() -> None:
    follower, leader = refused(layout="heads:other")
    for message in (follower, leader):
        assert "rank 1 of mixed-0 has the KV layout heads:other, rank 0 heads:0123" in message


def test_a_rank_that_is_here_already_is_refused() -> None:
    address = new_address(WORKER)
    with ThreadPoolExecutor(3) as pool:
        leading = pool.submit(Leader.meet, team_config(0, 3, address, meet_s=3.0), LAYOUT, 10)
        twins = [
            pool.submit(Follower.join, team_config(1, 3, address), LAYOUT, 10) for _ in range(2)
        ]
        errors = sorted(str(twin.exception(PATIENCE_S)) for twin in twins)
        assert "rank 1 is here already" in errors[1]
        assert (
            errors[0] == "rank 0 of mixed-0 is lost while ranks meet: it has gone (end of stream)"
        )
        assert str(leading.exception(PATIENCE_S)) == "rank 2 of mixed-0 did not come within 3 s"


def test_strangers_at_the_socket_do_not_disturb_the_meeting() -> None:
    address = new_address(WORKER)
    with ThreadPoolExecutor(2) as pool:
        leading = pool.submit(Leader.meet, team_config(0, 2, address), LAYOUT, 10)
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x91" * 10_000, b"\xff"):
            with connect(address, Deadline.after(5.0)) as stranger:
                try:
                    stranger.sendall(data)
                except BrokenPipeError:
                    continue
        silent = connect(address, Deadline.after(5.0))  # says nothing, and stays
        joining = pool.submit(Follower.join, team_config(1, 2, address), LAYOUT, 10)
        leader, follower = leading.result(PATIENCE_S), joining.result(PATIENCE_S)
        silent.close()
    end_in_order(leader, [follower])


def test_an_address_that_is_taken_and_one_where_nobody_listens() -> None:
    address = new_address(WORKER)
    with listen(address), pytest.raises(ConfigError, match=r"leader_address .*cannot listen there"):
        Leader.meet(team_config(0, 2, address), LAYOUT, 10)
    with pytest.raises(RankLost, match=r"rank 0 was not to be reached at @.* within 0\.3 s"):
        Follower.join(team_config(1, 2, new_address(WORKER), meet_s=0.3), LAYOUT, 10)


def test_ranks_with_other_weights_do_not_start() -> None:
    with meeting(3) as (leader, followers):
        for follower, fingerprint in zip(followers, ("mine", "other"), strict=True):
            follower.ready(fingerprint)
        with pytest.raises(ConfigError, match="rank 2 of mixed-0 has loaded weights other"):
            leader.await_ready("mine")
        for follower in followers:
            with pytest.raises(RankLost, match="rank 2 of mixed-0 has loaded weights other"):
                follower.next()


# --- losses -----------------------------------------------------------------------------------


def test_a_step_that_fails_on_a_follower_ends_the_worker() -> None:
    with team(3) as made:
        runner = made.runner
        runner.forward([rows(1)])

        def fail() -> None:
            raise MemoryError("no room")

        made.runners[2].before = fail
        with pytest.raises(RankLost) as error:
            runner.forward([rows(1)])
        lost = made.losses.get(timeout=PATIENCE_S)
        assert "rank 2" in str(error.value)
        assert lost is error.value
        assert "failed in step 2: MemoryError: no room" in str(made.outcomes()[1])
        assert isinstance(made.outcomes()[0], RankLost)
        with pytest.raises(RankLost, match="rank 2"):
            runner.forward([rows(1)])


def test_a_step_that_fails_on_rank_0_ends_the_worker() -> None:
    with team(2) as made:

        def fail() -> None:
            raise MemoryError("no room")

        made.runners[0].before = fail
        with pytest.raises(RankLost, match="rank 0 failed in step 1: MemoryError: no room"):
            made.runner.forward([rows(1)])
        assert isinstance(made.outcomes()[0], RankLost)


def test_a_follower_that_goes_while_nothing_runs_is_noticed() -> None:
    with team(3) as made:
        made.followers[1]._peer._connection.close()
        assert "rank 2 of mixed-0 is lost: it has gone" in str(made.losses.get(timeout=PATIENCE_S))
        for outcome in made.outcomes():
            assert isinstance(outcome, RankLost)
        assert "rank 0 of mixed-0 is lost: it failed: rank 2 of mixed-0 is lost" in str(
            made.outcomes()[0]
        )
        with pytest.raises(RankLost, match="rank 2 of mixed-0"):
            made.leader.check()


def test_whoever_listens_late_hears_of_a_loss_too() -> None:
    with team(2) as made:
        made.followers[0]._peer._connection.close()
        first = made.losses.get(timeout=PATIENCE_S)
        made.leader.on_lost(made.losses.put)
        assert made.losses.get(timeout=PATIENCE_S) is first


def test_a_rank_that_says_nothing_any_more_is_lost() -> None:
    address = new_address(WORKER)
    config = team_config(1, 2, address)
    leading = team_config(0, 2, address, silence_s=0.5, beat_s=0.1)
    with ThreadPoolExecutor(2) as pool:
        meeting_leader = pool.submit(Leader.meet, leading, LAYOUT, 10)
        follower = Follower.join(config, LAYOUT, 10)
        leader = meeting_leader.result(PATIENCE_S)
        losses: queue.SimpleQueue[RankLost] = queue.SimpleQueue()
        leader.on_lost(losses.put)
        # It beats once a second, which is not often enough for this leader.
        lost = losses.get(timeout=PATIENCE_S)
        leader.close()
        follower.close()
    assert str(lost) == "rank 1 of mixed-0 is lost: it said nothing for 0.5 s"


def test_a_follower_that_hears_what_it_does_not_expect_ends() -> None:
    with meeting(2) as (leader, followers):
        leader.tell(step_frame(7, [rows(1)], 0))
        runner = SumRunner(followers[0].ranks)
        with pytest.raises(RankLost, match="step 7 came where 1 was expected"):
            FollowerLoop(runner, followers[0]).run()
        assert runner.steps == []
        with pytest.raises(RankLost, match="step 7 came where 1 was expected"):
            leader.await_ready("weights")


class LosingExecutor(FakeExecutor):
    """An executor whose second step finds a rank lost."""

    def execute(self, work: Sequence[Work], on_layers: LayersDone | None) -> list[SampledRun]:
        if self.batches:
            raise RankLost("rank 1 of mixed-0 is lost")
        return super().execute(work, on_layers)


def test_a_lost_rank_ends_the_engine_and_leaves_its_requests_to_be_moved() -> None:
    engine, _ = create_engine(executor=LosingExecutor(4))
    engine.add_request(create_request())
    engine.step()
    engine.take_outputs()
    with pytest.raises(RankLost):
        engine.step()
    assert not engine.take_outputs().failures


async def test_an_engine_that_waits_for_requests_dies_of_a_lost_rank_too() -> None:
    deaths: asyncio.Queue[EngineError] = asyncio.Queue()
    loop = EngineLoop(create_engine()[0], publish=lambda outputs: None, on_death=deaths.put_nowait)
    loop.start()
    loop.fail(RankLost("rank 1 of mixed-0 is lost"))
    async with asyncio.timeout(PATIENCE_S):
        assert str(await deaths.get()) == "rank 1 of mixed-0 is lost"
    await loop.stop(PATIENCE_S)
    assert not loop.alive
