"""Requests that come at times drawn beforehand."""

import time

from tests.support.stream_server import DONE, LAST, TOKEN, USAGE, answering

from twinflow.cluster.chaos.history import EndKind
from twinflow.cluster.chaos.load import Load, LoadShape, asking, draw_prompts

PROMPTS = draw_prompts(5)


def test_prompts_are_those_of_the_seed() -> None:
    assert draw_prompts(5) == PROMPTS
    assert draw_prompts(5, seed=1) != PROMPTS
    assert asking(PROMPTS[0], "tiny", "a")["cache_salt"] == "a"


def test_every_request_is_waited_for_and_some_are_spoilt() -> None:
    shape = LoadShape(rate=200, leaving=0.3, bad=0.2, patience_s=30)
    with answering(TOKEN + LAST + USAGE + DONE) as endpoint:
        load = Load(endpoint, "tiny", PROMPTS, shape=shape, seed=3)
        load.start()
        while len(load.requests) < 60:
            time.sleep(0.01)
        requests = load.finish()
    assert load.requests is requests
    assert all(len(request.ends) == 1 for request in requests)
    assert len({request.name for request in requests}) == len(requests)
    spoilt = [request for request in requests if request.bad]
    left = [request for request in requests if request.ends[0].kind is EndKind.LEFT]
    assert spoilt
    assert left
    # This server serves everything, and nobody meant it to.
    assert not any(request.as_meant for request in spoilt)
    assert all(request.as_meant for request in requests if not request.bad)
