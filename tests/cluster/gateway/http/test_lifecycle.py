"""Clients that leave, do not read, or come all at once (catalogue rows A42 to A44, A46, A47)."""

import json
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.support.fake_backend import Behaviour
from tests.support.http_gateway import (
    CONFIG,
    HttpGateway,
    chat_body,
    completion_body,
    http_gateway,
    raw_post,
    read_all,
    status_of,
)

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"


def post_of(body: dict[str, object], path: str = COMPLETION) -> bytes:
    return raw_post(path, json.dumps(body).encode())


def test_a42_slow_reader_is_cut_off_and_nobody_else() -> None:
    endless = Behaviour(reply=lambda spec: b"x" * 4096, tokens_per_delta=4096)
    limits = replace(CONFIG, write_timeout_s=0.5)
    with http_gateway(endless, config=limits, max_model_len=1 << 30) as gateway:
        body = completion_body(ignore_eos=True, stream=True, max_tokens=1 << 29)
        with gateway.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(post_of(body))
            gateway.wait_until(lambda: len(gateway.backend.live) == 1, "the stream")
            good = completion_body("good", max_tokens=4096)
            assert gateway.post(COMPLETION, good).status_code == 200
            gateway.wait_until(lambda: gateway.backend.outcomes["aborted"] == 1, "the cut")
        gateway.wait_until_idle()
        assert gateway.metric("vllm:request_success_total", finished_reason="abort") == 1
        # What the sockets hold, not what the request asked for.
        assert gateway.metric("vllm:generation_tokens_total") < 1 << 26


STAGES: dict[str, tuple[Behaviour, Callable[[HttpGateway], bool]]] = {
    "A43-queue-or-prefill": (
        Behaviour(first_delay_s=30),
        lambda gateway: len(gateway.backend.live) == 1,
    ),
    "A43-decode": (
        Behaviour(delay_s=0.01),
        lambda gateway: gateway.metric("vllm:generation_tokens_total") > 3,
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("behaviour", "reached"), STAGES.values(), ids=STAGES.keys())
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_disconnect_aborts(
    behaviour: Behaviour, reached: Callable[[HttpGateway], bool], stream: bool, reset: bool
) -> None:
    with http_gateway(behaviour) as gateway:
        body = completion_body(stream=stream, ignore_eos=True, max_tokens=250)
        with gateway.connect() as connection:
            connection.sendall(post_of(body))
            gateway.wait_until(lambda: reached(gateway), "the stage")
            if reset:
                linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        gateway.wait_until(lambda: gateway.backend.outcomes["aborted"] == 1, "the abort")
        gateway.wait_until_idle()
        assert gateway.metric("vllm:request_success_total", finished_reason="abort") == 1


def test_a43_disconnect_aborts_every_completion() -> None:
    with http_gateway(Behaviour(first_delay_s=30)) as gateway:
        with gateway.connect() as connection:
            connection.sendall(post_of(completion_body(["a", "b"], n=4)))
            gateway.wait_until(lambda: len(gateway.backend.live) == 8, "the sequences")
        gateway.wait_until(lambda: gateway.backend.outcomes["aborted"] == 8, "the abort")


@pytest.mark.parametrize("sent", [0, 20, -1], ids=["nothing", "half-a-head", "half-a-body"])
def test_a43_disconnect_before_there_is_a_request(gateway: HttpGateway, sent: int) -> None:
    admitted = len(gateway.backend.specs)
    with gateway.connect() as connection:
        connection.sendall(post_of(completion_body())[:sent])
    gateway.wait_until(lambda: gateway.server_connections == 0, "the connection to go")
    assert len(gateway.backend.specs) == admitted


def test_a43_disconnect_after_the_last_token(gateway: HttpGateway) -> None:
    finished = gateway.backend.outcomes["finished"]
    with gateway.connect() as connection:
        connection.sendall(post_of(completion_body(stream=True, max_tokens=3)))
        data = b""
        while b"[DONE]" not in data:
            data += connection.recv(65536)
    gateway.wait_until_idle()
    assert gateway.backend.outcomes["finished"] == finished + 1


@pytest.mark.slow
def test_a44_two_hundred_clients_give_up() -> None:
    endless = Behaviour(delay_s=0.05, reply=lambda spec: b"x" * 100)
    with http_gateway(endless, max_model_len=20_000) as gateway:
        body = post_of(chat_body(max_tokens=10_000, ignore_eos=True), CHAT)
        connections = [gateway.connect() for _ in range(200)]
        for connection in connections:
            connection.sendall(body)
        gateway.wait_until(lambda: len(gateway.backend.specs) == 200, "all of them")
        for connection in connections:
            connection.close()
        gateway.wait_until(lambda: gateway.backend.outcomes["aborted"] == 200, "the aborts")
        assert gateway.post(CHAT, chat_body(max_tokens=10)).status_code == 200
        gateway.wait_until_idle()
        assert gateway.metric("vllm:request_success_total", finished_reason="abort") == 200


def test_a46_more_requests_than_room() -> None:
    with http_gateway(Behaviour(delay_s=0.005)) as gateway:
        gateway.backend.max_sequences = 10
        raw = post_of(completion_body(max_tokens=8))
        with ThreadPoolExecutor(50) as pool:
            responses = list(pool.map(lambda _: gateway.exchange(raw), range(200)))
        statuses = [status_of(response) for response in responses]
        assert set(statuses) == {200, 429}
        for response in responses:
            if status_of(response) == 429:
                assert b"retry-after: 2\r\n" in response
                assert b"rate_limit_exceeded" in response
        gateway.wait_until_idle()
        rejected = gateway.metric("vllm:admission_rejections_total", reason="rate_limit_exceeded")
        assert rejected == statuses.count(429)
        assert len(gateway.backend.specs) == statuses.count(200)


def test_a46_completions_are_admitted_together_or_not_at_all() -> None:
    with http_gateway() as gateway:
        gateway.backend.max_sequences = 3
        assert gateway.post(COMPLETION, completion_body(n=4)).status_code == 429
        assert gateway.post(COMPLETION, completion_body(["a", "b"], n=2)).status_code == 429
        assert gateway.backend.specs == []
        assert gateway.post(COMPLETION, completion_body(n=3)).status_code == 200


def test_a47_same_request_id_twice() -> None:
    with http_gateway(Behaviour(delay_s=0.001)) as gateway:
        headers = {"x-request-id": "same"}

        def ask(prompt: str) -> tuple[str, str]:
            body = completion_body(prompt, temperature=0, max_tokens=20)
            answer = gateway.post(COMPLETION, body, headers=headers).json()
            return answer["id"], answer["choices"][0]["text"]

        prompts = ["a", "b", "a", "b"] * 10
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(ask, prompts))
        assert len({answer_id for answer_id, _ in answers}) == len(prompts)
        texts = {prompt: {t for p, (_, t) in zip(prompts, answers, strict=True) if p == prompt}
                 for prompt in "ab"}  # fmt: skip
        assert [len(found) for found in texts.values()] == [1, 1]
        assert texts["a"] != texts["b"]


def test_requests_in_flight_finish_when_the_server_stops() -> None:
    with http_gateway(Behaviour(delay_s=0.01)) as gateway:
        with gateway.connect() as connection:
            connection.sendall(post_of(completion_body(stream=True, max_tokens=40)))
            gateway.wait_until(lambda: len(gateway.backend.live) == 1, "the stream")
            gateway.begin_stop()
            response = read_all(connection)
        assert response.count(b"data: ") == 41
        assert b"[DONE]" in response
        with pytest.raises(ConnectionRefusedError):
            gateway.connect()


@pytest.mark.parametrize("stream", [False, True])
def test_requests_that_outlast_the_server_are_told(stream: bool) -> None:
    slow = Behaviour(delay_s=0.05)
    with http_gateway(slow, config=replace(CONFIG, shutdown_s=0.2)) as gateway:
        with gateway.connect() as connection:
            body = completion_body(stream=stream, ignore_eos=True, max_tokens=250)
            connection.sendall(post_of(body))
            gateway.wait_until(
                lambda: gateway.metric("vllm:generation_tokens_total") > 1, "some tokens"
            )
            gateway.begin_stop()
            response = read_all(connection)
        assert status_of(response) == (200 if stream else 503)
        assert b"The server is shutting down." in response
        assert b"[DONE]" not in response
        assert stream or b"retry-after: 1" in response
        gateway.wait_until(lambda: gateway.backend.outcomes["aborted"] == 1, "the abort")


def test_deadline_of_a_request() -> None:
    limits = replace(CONFIG, deadline_s=1e-9)
    with http_gateway(config=limits) as gateway:
        response = gateway.post(CHAT, chat_body())
        assert response.status_code == 504
        assert gateway.backend.specs == []


def test_books_balance_after_a_mixed_load() -> None:
    with http_gateway(Behaviour(delay_s=0.002)) as gateway:
        gateway.backend.max_sequences = 30
        bodies = [
            completion_body(max_tokens=30, stream=True),
            completion_body(["a", "b"], n=2, max_tokens=10),
            completion_body(temperature=5),
            completion_body(stop="a", max_tokens=40),
        ]

        def ask(number: int) -> int:
            raw = post_of(bodies[number % len(bodies)])
            with gateway.connect() as connection:
                connection.sendall(raw)
                if number % 10 == 0:
                    time.sleep(0.01)
                    return 0
                response = read_all(connection)
                assert len(re.findall(rb"HTTP/1\.1 ", response)) == 1
                return status_of(response)

        with ThreadPoolExecutor(40) as pool:
            statuses = list(pool.map(ask, range(400)))
        gateway.wait_until_idle()
        assert set(statuses) <= {0, 200, 400, 429}
        accepted = gateway.metric("twinflow:requests_accepted_total")
        ended = sum(
            gateway.metric("vllm:request_success_total", finished_reason=reason)
            for reason in ("stop", "length", "abort")
        )
        assert accepted == ended == len(gateway.backend.specs)
