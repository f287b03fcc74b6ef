"""What counts as a token, and which outcome each way to end has."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from benchmarks.load.records import Kind, Outcome, PreparedRequest
from benchmarks.load.stream import CompletionStream, End
from tests.support.load import plan, prepared

SSE = {"content-type": "text/event-stream; charset=utf-8"}
DONE = b"data: [DONE]\n\n"


def _frame(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def _text(text: str, **more: Any) -> bytes:
    return _frame({"choices": [{"index": 0, "text": text, **more}]})


def _delta(**delta: Any) -> bytes:
    return _frame({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def _usage(tokens: int) -> bytes:
    return _frame({"choices": [], "usage": {"completion_tokens": tokens, "prompt_tokens": 8}})


def _play(
    frames: Iterable[bytes], request: PreparedRequest | None = None, status: int = 200
) -> CompletionStream:
    """Feed one frame a second, from 1 s on."""
    stream = CompletionStream(request or prepared())
    stream.head(status, SSE)
    for second, frame in enumerate(frames, start=1):
        if not stream.body(frame, float(second)):
            break
    return stream


def test_a_proper_completion_is_ok() -> None:
    frames = [_text("a"), _text("b"), _text("c"), _text("d"), _text("", finish_reason="length")]
    stream = _play([*frames, _usage(4), DONE])
    assert stream.token_times == [1.0, 2.0, 3.0, 4.0]
    assert stream.verdict(End.COMPLETE).outcome is Outcome.OK
    assert (stream.tokens, stream.count_source, stream.done_at) == (4, "usage", 7.0)
    assert stream.finish_reason == "length"


def test_a_chunk_that_only_names_the_role_is_not_the_first_token() -> None:
    stream = _play([_delta(role="assistant", content=""), _delta(content="a"), _delta(content="b")])
    assert stream.token_times == [2.0, 3.0]


def test_role_and_first_token_in_one_chunk_are_the_first_token() -> None:
    stream = _play([_delta(role="assistant", content="a"), _delta(content="b")])
    assert stream.token_times == [1.0, 2.0]


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
    ],
)
def test_reasoning_and_tool_calls_are_tokens(delta: dict[str, Any]) -> None:
    assert _play([_delta(**delta)]).token_times == [1.0]


def test_token_ids_count_tokens_that_text_does_not_show() -> None:
    # Half a character: the id is there, its text comes with the next one.
    frames = [_text("", token_ids=[7]), _text("é", token_ids=[8, 9]), _text("!", token_ids=[])]
    stream = _play([*frames, DONE], prepared(expected=3))
    assert stream.token_times == [1.0, 2.0]
    assert (stream.tokens, stream.count_source) == (3, "token_ids")
    assert stream.verdict(End.COMPLETE).outcome is Outcome.OK


def test_several_events_in_one_read_have_its_time() -> None:
    stream = CompletionStream(prepared(expected=3))
    stream.head(200, SSE)
    stream.body(_text("a") + _text("b") + _text("c")[:9], 1.0)
    stream.body(_text("c")[9:] + DONE, 2.0)
    assert stream.token_times == [1.0, 1.0, 2.0]
    assert stream.verdict(End.COMPLETE).outcome is Outcome.OK


def test_a_wrong_count_fails() -> None:
    verdict = _play([_text("a"), _usage(3), DONE]).verdict(End.COMPLETE)
    assert (verdict.outcome, verdict.failure) == (Outcome.FAILED, "wrong_count")
    assert "3 tokens instead of 4" in verdict.detail


def test_usage_that_disagrees_with_the_ids_fails() -> None:
    verdict = _play([_text("a", token_ids=[1, 2, 3]), _usage(4), DONE]).verdict(End.COMPLETE)
    assert verdict.failure == "wrong_count"
    assert "3/4 tokens" in verdict.detail


def test_usage_without_any_token_fails() -> None:
    assert _play([_usage(4), DONE]).verdict(End.COMPLETE).failure == "wrong_count"


def test_without_an_expected_count_any_is_right() -> None:
    stream = _play([_text("a"), _usage(1), DONE], prepared(expected=None))
    assert stream.verdict(End.COMPLETE).outcome is Outcome.OK


def test_a_stream_without_done_fails() -> None:
    verdict = _play([_text("a"), _usage(4)]).verdict(End.COMPLETE)
    assert (verdict.outcome, verdict.failure) == (Outcome.FAILED, "no_done")


def test_a_stream_that_is_cut_fails_and_says_where() -> None:
    verdict = _play([_text("a")]).verdict(End.CLOSED)
    assert verdict.failure == "closed"
    assert "while the next token was awaited" in verdict.detail


def test_close_after_done_is_a_proper_end() -> None:
    frames = [_text("a"), _usage(4), DONE]
    assert _play(frames).verdict(End.CLOSED).outcome is Outcome.OK


def test_an_error_frame_fails_with_its_message() -> None:
    frames = [_text("a"), _frame({"error": {"message": "worker lost", "type": "x"}}), DONE]
    verdict = _play(frames).verdict(End.HUNG_UP)
    assert (verdict.failure, verdict.detail) == ("error_frame", "worker lost")


def test_a_null_error_is_none() -> None:
    stream = _play([_frame({"choices": [{"text": "a"}], "error": None})])
    assert stream.token_times == [1.0]


def test_a_chunk_that_is_not_json_fails() -> None:
    assert _play([b"data: {oops\n\n"]).verdict(End.HUNG_UP).failure == "malformed"


def test_an_answer_that_is_not_a_stream_fails() -> None:
    stream = CompletionStream(prepared())
    stream.head(200, {"content-type": "application/json"})
    assert not stream.body(b"{}", 1.0)
    verdict = stream.verdict(End.HUNG_UP)
    assert verdict.failure == "malformed"
    assert "application/json" in verdict.detail


@pytest.mark.parametrize(
    ("status", "headers", "outcome", "failure"),
    [
        (503, {"retry-after": "1"}, Outcome.REJECTED, ""),
        (429, {}, Outcome.REJECTED, ""),
        (503, {}, Outcome.FAILED, "http_503"),
        (400, {}, Outcome.FAILED, "http_400"),
        (500, {}, Outcome.FAILED, "http_500"),
    ],
)
def test_refusals_by_status(
    status: int, headers: dict[str, str], outcome: Outcome, failure: str
) -> None:
    stream = CompletionStream(prepared())
    stream.head(status, headers)
    assert stream.body(b'{"error":{"message":"no ', 1.0)
    assert stream.body(b'room","type":"x"}}', 1.0)
    verdict = stream.verdict(End.COMPLETE)
    assert (verdict.outcome, verdict.failure, verdict.detail) == (outcome, failure, "no room")


def test_an_error_body_of_another_shape_is_shown_as_it_is() -> None:
    stream = CompletionStream(prepared())
    stream.head(502, {})
    stream.body(b"<html>bad gateway</html>", 1.0)
    assert stream.verdict(End.COMPLETE).detail == "<html>bad gateway</html>"


@pytest.mark.parametrize(
    ("status", "outcome", "failure"),
    [
        (400, Outcome.BAD_REFUSED, ""),
        (404, Outcome.BAD_REFUSED, ""),
        (500, Outcome.FAILED, "http_500"),
        (200, Outcome.FAILED, "bad_accepted"),
    ],
)
def test_bad_requests_must_be_refused(status: int, outcome: Outcome, failure: str) -> None:
    stream = _play([_text("a"), DONE], prepared(plan(kind=Kind.BAD), None), status)
    verdict = stream.verdict(End.COMPLETE)
    assert (verdict.outcome, verdict.failure) == (outcome, failure)


def test_the_client_hangs_up_after_its_tokens() -> None:
    stream = CompletionStream(prepared(plan(kind=Kind.DISCONNECT, hang_up_after=2)))
    stream.head(200, SSE)
    assert stream.body(_text("a"), 1.0)
    assert not stream.body(_text("b"), 2.0)
    assert stream.verdict(End.HUNG_UP).outcome is Outcome.DISCONNECTED


@pytest.mark.parametrize(("end", "failure"), [(End.CLOSED, "closed"), (End.MALFORMED, "malformed")])
def test_no_response_head_is_a_failure(end: End, failure: str) -> None:
    verdict = CompletionStream(prepared()).verdict(end)
    assert (verdict.outcome, verdict.failure) == (Outcome.FAILED, failure)


def test_the_phase_names_what_is_awaited() -> None:
    stream = CompletionStream(prepared())
    phases = [stream.phase]
    stream.head(200, SSE)
    phases.append(stream.phase)
    stream.body(_text("a"), 1.0)
    phases.append(stream.phase)
    assert phases == ["the response head", "the first token", "the next token"]
