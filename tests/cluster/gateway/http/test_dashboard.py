"""The dashboard: its files and what they may do, the latest requests, and the page in a browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.browser import Page, rendered
from tests.support.engines import ManualClock
from tests.support.http_gateway import HttpGateway, chat_body, http_gateway

from twinflow.cluster.dispatch.history import History
from twinflow.cluster.gateway.backend import LaneInfo, WorkerInfo
from twinflow.cluster.router.snapshot import Route, WorkerView
from twinflow.protos.twinflow.internal.v1.worker_pb2 import LaneStats, WorkerStats
from twinflow.runtime.outputs import FinishReason, PhaseTime, TokenDelta

KEY = "sk-dashboard"
GOOD = {"authorization": f"Bearer {KEY}"}
FILES = ("", "/page.js", "/page.css", "/metrics.js", "/drawing.js")
PAIR = Route(WorkerView(worker_id="decode-0"), WorkerView(worker_id="prefill-0"))


def remembered() -> History:
    """A request that is over, one that was lost and moved, and one that runs."""
    clock = ManualClock()
    history = History(clock)
    over = history.begin("r-over", 100)
    history.attempt(over, PAIR)
    clock.advance(2.0)
    phases = (PhaseTime("queue", 0.5), PhaseTime("prefill", 1.5), PhaseTime("decode", 2.0))
    history.deliver(over, TokenDelta((1,)))
    clock.advance(2.0)
    history.deliver(over, TokenDelta((2,), finish_reason=FinishReason.STOP, phases=phases))
    moved = history.begin("<b>r-moved</b>", 7)
    history.attempt(moved, PAIR)
    history.leave(moved, "prefill-0 was lost")
    history.attempt(moved, Route(WorkerView(worker_id="mixed-0")))
    clock.advance(4.0)
    return history


@pytest.fixture
def watched() -> Iterator[HttpGateway]:
    """A gateway with keys, two workers and a past."""
    with http_gateway(keys=[KEY]) as gateway:
        gateway.history = remembered()
        gateway.backend.worker_infos = (
            WorkerInfo("prefill-0", "prefill", up=False),
            WorkerInfo("mixed-0", "mixed", up=True, ranks=1, lanes=LaneInfo("auto", "cores")),
        )
        stats = WorkerStats(
            num_running=3,
            num_waiting=2,
            total_blocks=100,
            free_blocks=60,
            lanes=LaneStats(backend="cores", prefill_processors=6, decode_processors=2),
        )
        gateway.metrics.observe_worker("mixed-0", "mixed", stats)
        yield gateway


def page(gateway: HttpGateway, profile: Path, fragment: str = f"#key={KEY}") -> Page:
    return rendered(f"{gateway.url}/dashboard{fragment}", profile)


@pytest.mark.parametrize("name", FILES)
def test_files_are_open_and_allow_nothing_from_elsewhere(watched: HttpGateway, name: str) -> None:
    found = watched.get(f"/dashboard{name}")
    assert found.status_code == 200
    policy = found.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert found.headers["x-content-type-options"] == "nosniff"
    assert "http" not in found.text.replace("http://www.w3.org/2000/svg", "")


def test_only_its_files_are_open(watched: HttpGateway) -> None:
    for path in ("/dashboard/requests", "/dashboard/other.js", "/dashboard/..%2fapp.py"):
        assert watched.get(path).status_code == 401
        known = watched.get(path, headers=GOOD).status_code
        assert known == (200 if path.endswith("requests") else 404)


def test_the_latest_requests_come_first(watched: HttpGateway) -> None:
    moved, over = watched.get("/dashboard/requests", headers=GOOD).json()["requests"]
    assert over == {
        "id": "r-over",
        "state": "finished",
        "age_s": 8.0,
        "prompt_tokens": 100,
        "output_tokens": 2,
        "first_token_s": 2.0,
        "attempts": [
            {
                "prefill": "prefill-0",
                "decode": "decode-0",
                "began_s": 0.0,
                "ended_s": 4.0,
                "outcome": "finished",
            }
        ],
        "phases": [["queue", 0.5], ["prefill", 1.5], ["decode", 2.0]],
    }
    assert [stay["outcome"] for stay in moved["attempts"]] == ["prefill-0 was lost", ""]
    assert (moved["state"], moved["first_token_s"]) == ("running", None)


def test_without_workers_there_are_no_requests() -> None:
    with http_gateway() as gateway:
        assert gateway.get("/dashboard/requests").json() == {"requests": []}


def test_the_latest_are_bounded() -> None:
    history = History(ManualClock())
    for number in range(100):
        history.begin(f"r-{number}", 1)
    assert [story.sequence_id for story in history.latest(2)] == ["r-99", "r-98"]


@pytest.mark.slow
def test_the_page_shows_what_is_served(watched: HttpGateway, tmp_path: Path) -> None:
    for _ in range(3):
        watched.post("/v1/chat/completions", chat_body(max_tokens=4), headers=GOOD)
    shown = page(watched, tmp_path)
    assert shown.console == []
    assert shown.texts["state"] == "ready"
    assert shown.texts["model"].startswith("tiny, twinflow ")
    assert "login" in shown.hidden
    assert "3running" in shown.texts["tiles"]
    assert "2waiting" in shown.texts["tiles"]
    _, lost, mixed = shown.tables["workers"]
    assert lost[:3] == ["prefill-0", "prefill", "away"]
    assert mixed[:5] == ["mixed-0", "mixed", "up", "3", "2"]
    assert [style.partition("width:")[2] for style in shown.widths["workers"]][-3:] == [
        " 40%;",  # of the blocks are in use
        " 75%;",  # of the cores are for prompts
        " 25%;",
    ]
    _, moved, over = shown.tables["requests"]
    assert moved[0] == "<b>r-moved</b"  # a text, not markup
    assert moved[1:6] == ["running", "7", "0", "-", "mixed-0 (attempt 2)"]
    assert over[1:6] == ["finished", "100", "2", "2.00 s", "prefill-0 → decode-0"]


@pytest.mark.slow
def test_the_page_asks_for_a_key(watched: HttpGateway, tmp_path: Path) -> None:
    shown = page(watched, tmp_path, "#key=wrong")
    assert shown.texts["state"] == "an API key is needed"
    assert "login" not in shown.hidden
    assert shown.tables == {}
