"""`twinflow status` against a real HTTP door, with the metrics that workers really have."""

import pytest
from tests.support.command_line import run_command
from tests.support.http_gateway import http_gateway
from tests.support.known_workers import server, two_workers

from twinflow.cluster.cli.commands.status import worker_table
from twinflow.cluster.gateway.backend import Readiness
from twinflow.protos.errors import Unavailable
from twinflow.protos.twinflow.internal.v1.worker_pb2 import WorkerStats


def test_a_ready_server() -> None:
    with server() as gateway:
        ran = run_command("status", "--url", gateway.url + "/")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        f"server   {gateway.url}",
        "ready    yes",
        "pair     prefill-0→decode-0: ok",
        "model    tiny (max_model_len 256, from /models/tiny)",
        "model    tiny-alias (max_model_len 256, from /models/tiny)",
        "",
        "role     worker     state  ranks  running  waiting  KV used",
        "decode   decode-0   up         2        2        0    25.0%",
        "prefill  prefill-0  up         1        0        3     0.0%",
    ]


def test_a_server_that_is_not_ready() -> None:
    with server() as gateway:
        gateway.backend.ready = Readiness(ready=False, reason="no decode worker is left")
        ran = run_command("status", "--url", gateway.url)
    assert ran.status == 1
    assert "ready    no: no decode worker is left" in ran.out


def test_a_server_that_has_lost_a_worker() -> None:
    fault = "decode-0: no sign of life for 5 s"
    workers = two_workers()
    workers.lose("decode-0")
    workers.observe("prefill-0", "prefill", WorkerStats(draining=True, ranks=1))
    with server(workers=workers) as gateway:
        gateway.backend.ready = Readiness(False, fault, ("prefill-0: ok", fault), degraded=True)
        ran = run_command("status", "--url", gateway.url)
    assert ran.status == 1
    lines = ran.out.splitlines()
    assert lines[1:4] == [
        "ready    in part: requests are served by what is left",
        "pair     prefill-0: ok",
        f"pair     {fault}",
    ]
    assert lines[-3:] == [
        "role     worker     state     ranks  running  waiting  KV used",
        "decode   decode-0   lost          -        -        -        -",
        "prefill  prefill-0  draining      1        0        0     0.0%",
    ]


def test_a_server_of_which_nothing_works() -> None:
    fault = "prefill-0→decode-0: no token within 4 s"
    with server() as gateway:
        gateway.backend.ready = Readiness(False, fault, (fault,))
        ran = run_command("status", "--url", gateway.url)
    assert ran.status == 1
    assert ran.out.splitlines()[1:3] == ["ready    no", f"pair     {fault}"]


def test_a_server_that_is_starting() -> None:
    with http_gateway() as gateway:
        gateway.backend.ready = Readiness(False, "the server is starting")
        gateway.backend.model_error = Unavailable("The server is starting.")
        ran = run_command("status", "--url", gateway.url)
    assert (ran.status, ran.err) == (1, "")
    assert "ready    no: the server is starting" in ran.out


def test_the_address_and_the_key_may_come_from_the_environment() -> None:
    with server("sesame") as gateway:
        environ = {"TWINFLOW_URL": gateway.url, "TWINFLOW_API_KEY": "sesame,other"}
        ran = run_command("status", environ=environ)
    assert (ran.status, ran.err) == (0, "")


def test_without_the_key_the_server_says_why() -> None:
    with server("sesame") as gateway:
        ran = run_command("status", "--url", gateway.url, "--api-key", "wrong")
    assert ran.status == 1
    assert "/v1/models: HTTP 401: " in ran.err and "wrong" not in ran.err


def test_nobody_there() -> None:
    ran = run_command("status", "--url", "http://127.0.0.1:1")
    assert ran.status == 1
    assert "is `twinflow serve` running there?" in ran.err


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port"])
def test_addresses_that_are_none(url: str) -> None:
    ran = run_command("status", "--url", url)
    assert ran.status == 2
    assert "must look like" in ran.err


def test_metrics_that_a_worker_does_not_have_are_left_open() -> None:
    page = 'vllm:num_requests_running{worker="w",role="mixed"} 1.0\n'
    assert worker_table(page)[1].split() == ["mixed", "w", "-", "-", "1", "-", "-"]
