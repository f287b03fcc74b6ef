"""`twinflow top` against a real HTTP door, with the metrics that workers really have."""

import pytest
from tests.support.command_line import run_command
from tests.support.known_workers import BUSY_DECODE, server, two_workers

from twinflow.cluster.cli.commands.top import Screen, load_lines, request_lines, worker_lines
from twinflow.cluster.cli.scrapes import Between, Scrape
from twinflow.cluster.gateway.backend import Readiness

FIRST = """
vllm:generation_tokens_total{model_name="m"} 100
vllm:time_to_first_token_seconds_bucket{le="0.1"} 5
vllm:time_to_first_token_seconds_bucket{le="0.2"} 5
vllm:time_to_first_token_seconds_bucket{le="+Inf"} 5
twinflow:worker_up{role="decode",worker="d-0"} 1
twinflow:worker_busy_seconds_total{role="decode",worker="d-0"} 3
"""
LAST = """
vllm:generation_tokens_total{model_name="m"} 150
vllm:time_to_first_token_seconds_bucket{le="0.1"} 5
vllm:time_to_first_token_seconds_bucket{le="0.2"} 15
vllm:time_to_first_token_seconds_bucket{le="+Inf"} 15
twinflow:requests_in_flight 2
twinflow:worker_up{role="decode",worker="d-0"} 1
twinflow:worker_up{role="decode",worker="d-1"} 0
vllm:num_requests_running{role="decode",worker="d-0"} 2
vllm:kv_cache_usage_perc{role="decode",worker="d-0"} 0.25
twinflow:worker_busy_seconds_total{role="decode",worker="d-0"} 5
"""
BETWEEN = Between(Scrape.of(FIRST, 10.0), Scrape.of(LAST, 14.0))


def test_rates_and_latencies_are_of_the_time_between() -> None:
    lines = load_lines(BETWEEN)
    assert lines[0] == "requests  2 in flight, 0 failed, 0 rejected"
    assert lines[1] == "tokens/s  - of prompts, 12 generated"
    # Ten new observations between 100 and 200 ms, evenly.
    assert lines[3].split() == ["time", "to", "first", "token", "150", "190", "199"]
    assert lines[4].split()[-3:] == ["-", "-", "-"]


def test_a_row_for_each_worker() -> None:
    heading, up, lost = worker_lines(BETWEEN)
    assert heading.split()[:3] == ["role", "worker", "state"]
    assert up.split() == ["decode", "d-0", "up", "2", "-", "25%", "50%", "-", "-"]
    assert lost.split() == ["decode", "d-1", "lost", *"------"]


def test_a_counter_that_began_anew() -> None:
    between = Between(Scrape.of("a_total 7\n", 0.0), Scrape.of("a_total 3\n", 1.0))
    assert between.grown("a_total") == 3
    assert between.grown("b_total") is None


def test_observations_above_the_last_bound_count_as_it() -> None:
    page = 'h_bucket{le="0.5"} 0\nh_bucket{le="+Inf"} 4\n'
    between = Between(Scrape.of("", 0.0), Scrape.of(page, 1.0))
    assert between.quantile("h", 0.5) == 0.5
    assert between.quantile("other", 0.5) is None


def test_a_row_for_each_request() -> None:
    request = {
        "id": "cmpl-1", "state": "running", "age_s": 1.25, "prompt_tokens": 7, "output_tokens": 3,
        "first_token_s": 0.08, "attempts": [{"prefill": "p-0", "decode": "d-0"}],
    }  # fmt: skip
    row = request_lines([request, request | {"first_token_s": None, "attempts": []}])
    assert row[1].split() == ["cmpl-1", "running", "p-0→d-0", "1.2", "7", "3", "80"]
    assert row[2].split() == ["cmpl-1", "running", "-", "1.2", "7", "3", "-"]


def test_pictures_replace_each_other_on_a_terminal_only() -> None:
    written: list[str] = []
    for rewrites in (False, True):
        Screen(written.append, rewrites).show(["a", "b"])
    assert written == ["a\nb\n", "\x1b[H\x1b[2Ja\nb\n"]


def test_one_picture_of_a_server() -> None:
    with server(workers=two_workers()) as gateway:
        gateway.backend.ready = Readiness(False, "1 decode worker is missing")
        ran = run_command("top", "--once", "--interval", "0.1", "--url", gateway.url)
    assert (ran.status, ran.err) == (0, "")
    assert f"{gateway.url}   not ready: 1 decode worker is missing" in ran.out
    (decode,) = [line for line in ran.out.splitlines() if "decode-0" in line]
    assert decode.split()[:4] == ["decode", "decode-0", "up", str(BUSY_DECODE.num_running)]
    assert "no request yet" in ran.out


@pytest.mark.parametrize(
    ("flag", "value", "least"), [("--interval", "0", "0.1"), ("--requests", "many", "0")]
)
def test_a_flag_out_of_bounds(flag: str, value: str, least: str) -> None:
    ran = run_command("top", flag, value)
    assert ran.status == 2
    assert f"{flag} '{value}': must be a number of at least {least}" in ran.err


def test_nobody_there() -> None:
    ran = run_command("top", "--url", "http://127.0.0.1:1")
    assert ran.status == 1
    assert "is `twinflow serve` running there?" in ran.err
