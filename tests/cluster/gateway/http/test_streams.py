"""Streams as clients read them (catalogue rows A49 to A52), and the whole answers beside them."""

import math
from collections.abc import MutableMapping
from typing import Any

import pytest
from tests.support.fake_backend import Behaviour
from tests.support.http_gateway import (
    HttpGateway,
    assert_openai_error,
    chat_body,
    completion_body,
    http_gateway,
)

from twinflow.protos.errors import DeadlineExceeded, EngineError, TwinflowError
from twinflow.runtime.speculative.account import SpeculationAccount

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
PATHS = [(CHAT, chat_body()), (COMPLETION, completion_body())]


def saying(gateway: HttpGateway, reply: str | bytes, **changes: Any) -> None:
    """Change what the backend of a gateway produces."""
    data = reply.encode() if isinstance(reply, str) else reply
    gateway.backend.behaviour = Behaviour(reply=lambda spec: data, **changes)


@pytest.mark.parametrize(("path", "body"), PATHS, ids=["chat", "completion"])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("one\n\ntwo\r\n\r\nthree\r", id="A50-line-breaks"),
        pytest.param("data: x\n\ndata: [DONE]\n\n", id="A50-frames"),
        pytest.param("[DONE]", id="A50-done"),
        pytest.param('{"error": {"message": "x"}}', id="A50-error"),
        pytest.param("zwölf €uro 👩🏽‍🚀 漢字", id="A50-split-characters"),
        pytest.param("\u2028\u2029\x00\x7f\ufeff", id="A50-separators"),
    ],
)
@pytest.mark.parametrize("tokens_per_delta", [1, 3])
def test_text_cannot_break_the_framing(
    gateway: HttpGateway, path: str, body: dict[str, object], text: str, tokens_per_delta: int
) -> None:
    saying(gateway, text, tokens_per_delta=tokens_per_delta)
    events = gateway.stream(path, body | {"max_tokens": 200})
    assert events.done
    assert "".join(events.texts()) == text
    assert "\ufffd" not in events.text
    whole = gateway.post(path, body | {"max_tokens": 200}).json()["choices"][0]
    assert (whole["text"] if path == COMPLETION else whole["message"]["content"]) == text


def test_a50_character_that_is_never_completed(gateway: HttpGateway) -> None:
    saying(gateway, "é".encode()[:1])
    assert gateway.stream(CHAT, chat_body()).texts() == ["\ufffd"]


def test_a51_role_and_first_token_share_the_first_chunk(gateway: HttpGateway) -> None:
    saying(gateway, "héllo")
    events = gateway.stream(CHAT, chat_body())
    choices = [event["choices"][0] for event in events.data]
    assert choices[0]["delta"] == {"role": "assistant", "content": "h"}
    assert [choice["delta"] for choice in choices[1:]] == [
        {"content": "é"}, {"content": "l"}, {"content": "l"}, {"content": "o"}, {},
    ]  # fmt: skip
    assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["stop"]
    assert events.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert events.headers["cache-control"] == "no-cache"
    assert len({event["id"] for event in events.data}) == 1
    assert {event["object"] for event in events.data} == {"chat.completion.chunk"}


def test_a51_with_many_completions_each_has_its_role(gateway: HttpGateway) -> None:
    saying(gateway, "ab")
    events = gateway.stream(CHAT, chat_body(n=3))
    for index in range(3):
        mine = [c for e in events.data for c in e["choices"] if c["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": "a"}
        assert [choice["finish_reason"] for choice in mine] == [None, None, "stop"]


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_usage_tells_what_became_of_proposed_tokens(
    gateway: HttpGateway, path: str, body: dict[str, object]
) -> None:
    saying(gateway, "abc", speculation=SpeculationAccount(2, 7, 4, [2, 1, 1]))
    usage = gateway.post(path, body | {"n": 2}).json()["usage"]
    assert usage["completion_tokens_details"] == {
        "accepted_prediction_tokens": 8,
        "rejected_prediction_tokens": 6,
        "num_drafts": 4,
        "accepted_tokens_per_pos": [4, 2, 2],
    }


@pytest.mark.parametrize(("path", "body"), PATHS, ids=["A52-chat", "A52-completion"])
@pytest.mark.parametrize("n", [1, 2])
def test_usage_comes_last_and_only_if_asked(
    gateway: HttpGateway, path: str, body: dict[str, object], n: int
) -> None:
    saying(gateway, "abc", cached_tokens=1)
    options = {"n": n, "stream_options": {"include_usage": True}}
    *chunks, last = gateway.stream(path, body | options).data
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    prompt = 19 if path == CHAT else 2
    assert last["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 4 * n,
        "total_tokens": prompt + 4 * n,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert gateway.post(path, body | {"n": n}).json()["usage"] == last["usage"]
    for silent in (None, {}, {"include_usage": False}):
        events = gateway.stream(path, body | {"stream_options": silent}).data
        assert all("usage" not in event for event in events)


@pytest.mark.parametrize(("path", "body"), PATHS, ids=["A49-chat", "A49-completion"])
def test_broken_stream_says_so(path: str, body: dict[str, object]) -> None:
    with http_gateway(Behaviour(fail_after=3)) as gateway:
        events = gateway.stream(path, body)
        assert not events.done
        *chunks, last = events.data
        assert len(chunks) == 3
        assert last["error"]["type"] == "server_error"
        assert last["error"]["code"] == "worker_lost"
        assert "10.0.0.7" not in events.text
        assert gateway.metric("twinflow:request_failures_total", code="worker_lost") == 1


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineError("cuda at 0xdeadbeef"), 500, "engine_error"),
        (DeadlineExceeded("worker decode-0 in decode"), 504, "deadline_exceeded"),
        (RuntimeError("/root/secret.py line 3"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failure_before_the_first_token_is_a_status(
    error: Exception, status: int, code: str, stream: bool
) -> None:
    with http_gateway(Behaviour(fail_after=0, error=error)) as gateway:
        response = gateway.post(CHAT, chat_body(stream=stream))
        assert_openai_error(response, status, code)
        assert str(error) not in response.text
        assert response.headers["x-request-id"] in response.text
        assert "x-should-retry" not in response.headers
        gateway.backend.behaviour = Behaviour()
        assert gateway.post(CHAT, chat_body()).status_code == 200


def test_failure_after_tokens_is_not_to_be_retried() -> None:
    with http_gateway(Behaviour(fail_after=2)) as gateway:
        response = gateway.post(CHAT, chat_body())
        assert_openai_error(response, 500, "worker_lost")
        assert response.headers["x-should-retry"] == "false"


def test_one_lost_sequence_ends_the_others() -> None:
    with http_gateway(Behaviour(fail_after=5, delay_s=0.001)) as gateway:
        events = gateway.stream(COMPLETION, completion_body(["a", "b"], n=2))
        assert "error" in events.data[-1]
        gateway.wait_until_idle()
        assert gateway.metric("twinflow:request_failures_total", code="worker_lost") == 4


def test_stop_string_ends_text_and_generation(gateway: HttpGateway) -> None:
    saying(gateway, "one two three four", delay_s=0.001)
    body = completion_body(stop=["e f", "three"], max_tokens=50)
    aborted = gateway.backend.outcomes["aborted"]
    choice = gateway.post(COMPLETION, body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
        "one two ", "stop", "three",
    )  # fmt: skip
    events = gateway.stream(COMPLETION, body)
    assert "".join(events.texts()) == "one two "
    gateway.wait_until_idle()
    assert gateway.backend.outcomes["aborted"] == aborted + 2
    kept = gateway.post(COMPLETION, body | {"include_stop_str_in_output": True}).json()
    assert kept["choices"][0]["text"] == "one two three"
    assert kept["usage"]["completion_tokens"] == len("one two three")


def test_a26_stop_strings_are_no_patterns(gateway: HttpGateway) -> None:
    saying(gateway, "abc a.c (x)* .*")
    for stop, text in (("a.c", "abc "), ("(x)*", "abc a.c "), (".*", "abc a.c (x)* ")):
        choice = gateway.post(COMPLETION, completion_body(stop=stop)).json()["choices"][0]
        assert choice["text"] == text


def test_stop_token(gateway: HttpGateway) -> None:
    saying(gateway, "abcd")
    body = chat_body(stop_token_ids=[ord("c")], return_token_ids=True)
    choice = gateway.post(CHAT, body).json()["choices"][0]
    assert choice["message"]["content"] == "ab"
    assert choice["stop_reason"] == ord("c")
    assert choice["token_ids"] == list(b"abc")


@pytest.mark.parametrize(("path", "body"), PATHS, ids=["chat", "completion"])
def test_token_ids_are_returned_on_request(
    gateway: HttpGateway, path: str, body: dict[str, object]
) -> None:
    saying(gateway, "xyz")
    asked = body | {"return_token_ids": True}
    whole = gateway.post(path, asked).json()
    prompt = list(b"hi") if path == COMPLETION else list(b"user: hi\nassistant:")
    holder = whole["choices"][0] if path == COMPLETION else whole
    assert holder["prompt_token_ids"] == prompt
    assert whole["choices"][0]["token_ids"] == [*b"xyz", 257]
    events = gateway.stream(path, asked).data
    first = events[0]["choices"][0] if path == COMPLETION else events[0]
    assert first["prompt_token_ids"] == prompt
    assert [t for e in events for t in e["choices"][0]["token_ids"]] == [*b"xyz", 257]
    assert "token_ids" not in gateway.post(path, body).text


def test_chat_logprobs(gateway: HttpGateway) -> None:
    saying(gateway, "é")
    body = chat_body(logprobs=True, top_logprobs=2)
    whole = gateway.post(CHAT, body).json()["choices"][0]["logprobs"]
    streamed = [e["choices"][0]["logprobs"]["content"] for e in gateway.stream(CHAT, body).data]
    assert [entry for content in streamed for entry in content] == whole["content"]
    assert whole["content"][0] == {
        "token": "\\xc3",
        "logprob": -0.5,
        "bytes": [0xC3],
        "top_logprobs": [
            {"token": "\\xc3", "logprob": -0.5, "bytes": [0xC3]},
            {"token": "\\xc4", "logprob": -1.5, "bytes": [0xC4]},
        ],
    }
    assert [len(entry["top_logprobs"]) for entry in whole["content"]] == [2, 2, 2]


def test_completion_logprobs(gateway: HttpGateway) -> None:
    saying(gateway, "aéb")
    body = completion_body(logprobs=1)
    whole = gateway.post(COMPLETION, body).json()["choices"][0]
    assert whole["text"] == "aéb"
    assert whole["logprobs"]["tokens"] == ["a", "\\xc3", "\\xa9", "b", ""]
    assert whole["logprobs"]["text_offset"] == [0, 1, 1, 2, 3]
    assert whole["logprobs"]["top_logprobs"][0] == {"a": -0.5}
    streamed = [e["choices"][0]["logprobs"] for e in gateway.stream(COMPLETION, body).data]
    assert [offset for part in streamed for offset in part["text_offset"]] == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("usage", [False, True])
def test_timeline_adds_up(gateway: HttpGateway, usage: bool) -> None:
    saying(gateway, "abcdef", first_delay_s=0.03, delay_s=0.005)
    asked = {"return_timeline": True}
    options = {"stream_options": {"include_usage": True}} if usage else {}
    events = gateway.stream(CHAT, chat_body(**asked, **options)).data
    assert ["timeline" in event for event in events] == [False] * (len(events) - 1) + [True]
    for timeline in (
        events[-1]["timeline"],
        gateway.post(CHAT, chat_body(**asked)).json()["timeline"],
    ):
        names = [phase["name"] for phase in timeline["phases"]]
        assert names == ["validate", "tokenize", "admit", "queue", "prefill", "decode", "wire"]
        assert all(phase["seconds"] >= 0 for phase in timeline["phases"])
        spent = sum(phase["seconds"] for phase in timeline["phases"])
        assert math.isclose(spent, timeline["total_seconds"], rel_tol=0.01)
        assert timeline["phases"][4]["seconds"] >= 0.02
    assert "timeline" not in gateway.post(CHAT, chat_body()).text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"stop": "e"}, "stop"), ({"max_tokens": 5}, "length"), ({}, "stop")],
    ids=["stop-string", "length", "end-of-text"],
)
def test_every_ending_has_all_phases(
    gateway: HttpGateway, fields: dict[str, object], reason: str
) -> None:
    """A stop string is found here, and the worker is not heard any more."""
    saying(gateway, "abcdef", first_delay_s=0.05, delay_s=0.02)
    observed = gateway.metric("vllm:request_decode_time_seconds_count")
    answer = gateway.post(CHAT, chat_body(return_timeline=True, **fields)).json()
    assert answer["choices"][0]["finish_reason"] == reason
    phases = {phase["name"]: phase["seconds"] for phase in answer["timeline"]["phases"]}
    assert list(phases)[3:] == ["queue", "prefill", "decode", "wire"]
    assert min(phases.values()) >= 0
    assert phases["prefill"] > 0.04
    assert phases["decode"] > 3 * 0.02
    assert gateway.metric("vllm:request_decode_time_seconds_count") == observed + 1


def test_template_that_refuses_and_template_that_is_missing(gateway: HttpGateway) -> None:
    refused = gateway.post(CHAT, chat_body("the template refuses this"))
    assert_openai_error(refused, 400, param="messages")
    with http_gateway() as other:
        other.codec.renderer = None
        assert_openai_error(other.post(CHAT, chat_body()), 400, param="messages")
        assert other.post(COMPLETION, completion_body()).status_code == 200


def test_what_the_client_is_not_told_is_in_the_log(
    gateway: HttpGateway, logs: list[MutableMapping[str, Any]]
) -> None:
    for fail_after, event in ((0, "request failed"), (1, "stream broke")):
        saying(gateway, "xy", fail_after=fail_after, error=TwinflowError("secret"))
        response = gateway.post(CHAT, chat_body(stream=True))
        assert "secret" not in response.text
        assert logs[-1]["event"] == event
        assert logs[-1]["problem"] == "secret"
        assert logs[-1]["request_id"] == response.headers["x-request-id"]
    saying(gateway, "x")
