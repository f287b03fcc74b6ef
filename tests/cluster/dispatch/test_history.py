"""What is remembered of sequences."""

from tests.support.engines import ManualClock

from twinflow.cluster.dispatch.history import History
from twinflow.cluster.router.snapshot import Route, WorkerView
from twinflow.runtime.outputs import FinishReason, TokenDelta

HERE, THERE = Route(WorkerView(worker_id="a")), Route(WorkerView(worker_id="b"))


def test_a_story_has_every_stay_and_an_end() -> None:
    clock = ManualClock()
    history = History(clock)
    story = history.begin("r-0", 10)
    history.attempt(story, HERE)
    clock.advance(1.0)
    history.deliver(story, TokenDelta((1, 2)))
    clock.advance(1.0)
    history.leave(story, "a was lost")
    history.attempt(story, THERE)
    clock.advance(1.0)
    history.deliver(story, TokenDelta((3,), finish_reason=FinishReason.STOP))
    clock.advance(1.0)
    history.close(story)
    first, second = story.attempts
    assert (first.outcome, first.tokens, first.began, first.ended) == ("a was lost", 2, 0.0, 2.0)
    assert (second.outcome, second.tokens, second.began, second.ended) == ("finished", 1, 2.0, 3.0)
    assert (story.state, story.first_token) == ("finished", 1.0)


def test_a_client_that_went_away() -> None:
    history = History(ManualClock())
    story = history.begin("r-0", 10)
    history.close(story)
    assert (story.state, story.attempts) == ("aborted", [])
    story = history.begin("r-1", 10)
    history.attempt(story, HERE)
    history.close(story)
    assert story.attempts[0].outcome == story.state == "aborted"


def test_requests_are_found_by_any_of_their_names() -> None:
    history = History(ManualClock())
    stories = [history.begin(f"r-{number}", 1) for number in range(3)]
    history.begin("other-0", 1)
    for name in ("r", "chatcmpl-r", "cmpl-r"):
        assert history.find(name) == tuple(stories)
    assert history.find("r-1") == (stories[1],)
    assert history.find("nobody") == ()


def test_the_oldest_go_first() -> None:
    history = History(ManualClock(), capacity=2)
    for number in range(5):
        history.begin(f"{number}-0", 1)
    assert len(history) == 2
    assert history.find("2") == () and history.find("4")
