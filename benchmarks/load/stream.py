"""Reads one streamed completion: from HTTP head and body bytes to token times and an outcome.

It does no I/O and reads no clock, so every way in which a stream can be cut or broken is tested
with scripted bytes. What counts as a token's arrival: a chunk with `token_ids`, text, content,
reasoning or a tool call. A chunk that only names the role is not a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from benchmarks.load.records import Kind, Outcome, PreparedRequest
from benchmarks.load.sse import EventTooLarge, SseDecoder

_DONE = b"[DONE]"
_MAX_ERROR_BODY = 4096
_MAX_DETAIL = 200
_OK = 200
_TOO_MANY_REQUESTS = 429


class End(StrEnum):
    """How an HTTP exchange ended, as the connection saw it."""

    COMPLETE = "complete"
    CLOSED = "the server closed the connection"
    HUNG_UP = "the client closed the connection"
    MALFORMED = "the answer is not HTTP"


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a request ended, and why if not well."""

    outcome: Outcome
    failure: str = ""
    detail: str = ""


def _carries_token(choice: _Choice) -> bool:
    delta = choice.delta
    if choice.text or delta is None:
        return bool(choice.text)
    return bool(delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls)


def error_message(body: bytes) -> str:
    """The message of an OpenAI-shaped error, or the start of the body if it has another shape."""
    try:
        decoded = msgspec.json.decode(body)
    except msgspec.DecodeError:
        decoded = None
    if isinstance(decoded, dict):
        inner = decoded.get("error", decoded)
        message = inner.get("message") if isinstance(inner, dict) else inner
        if isinstance(message, str):
            return message[:_MAX_DETAIL]
    return body[:_MAX_DETAIL].decode("utf-8", "replace")


class CompletionStream:
    """The answer to one request, as it arrives.

    Attributes:
        status: HTTP status; None before the head.
        retry_after: the Retry-After header, empty without one.
        token_times: clock readings of the chunks that carried tokens.
        finish_reason: as the server gave it, empty before.
    """

    def __init__(self, request: PreparedRequest) -> None:
        self._request = request
        self._events = SseDecoder()
        self._decode = msgspec.json.Decoder(_Chunk).decode
        self._error_body = b""
        self._broken: Verdict | None = None
        self._done_at: float | None = None
        self._seen = 0
        self._exact = False
        self._usage: int | None = None
        self.status: int | None = None
        self.retry_after = ""
        self.token_times: list[float] = []
        self.finish_reason = ""

    @property
    def phase(self) -> str:
        """What is being waited for, for the message of a deadline."""
        if self.status is None:
            return "the response head"
        if self.status != _OK:
            return "the end of the error body"
        return "the next token" if self.token_times else "the first token"

    @property
    def done_at(self) -> float | None:
        """When `[DONE]` arrived; None before."""
        return self._done_at

    @property
    def tokens(self) -> int:
        """Tokens received: by the server's usage, else by token ids, else by chunks."""
        return self._seen if self._usage is None else self._usage

    @property
    def count_source(self) -> str:
        """Where `tokens` comes from: `usage`, `token_ids` or `chunks`."""
        if self._usage is not None:
            return "usage"
        return "token_ids" if self._exact else "chunks"

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Take the response head; header names are in lower case."""
        self.status = status
        self.retry_after = headers.get("retry-after", "")
        kind = headers.get("content-type", "")
        if status == _OK and not kind.startswith("text/event-stream"):
            detail = f"content-type is {kind or 'missing'}, not text/event-stream"
            self._broken = Verdict(Outcome.FAILED, "malformed", detail)

    def body(self, data: bytes, at_s: float) -> bool:
        """Take body bytes that arrived at `at_s`; False asks the connection to hang up."""
        if self.status != _OK:
            self._error_body += data[: _MAX_ERROR_BODY - len(self._error_body)]
            return True
        if self._broken is not None:
            return False
        try:
            payloads = self._events.feed(data)
        except EventTooLarge as error:
            self._broken = Verdict(Outcome.FAILED, "malformed", str(error))
            return False
        return all(self._payload(payload, at_s) for payload in payloads)

    def verdict(self, end: End) -> Verdict:
        """The one outcome of the request, once its exchange has ended."""
        kind = self._request.plan.kind
        if self.status is None:
            failure = "malformed" if end is End.MALFORMED else "closed"
            return Verdict(Outcome.FAILED, failure, f"{end} before the response head")
        if self.status != _OK:
            return self._declined(kind)
        if self._broken is not None:
            return self._broken
        if kind is Kind.BAD:
            return Verdict(Outcome.FAILED, "bad_accepted", "a bad request was answered with 200")
        if end is End.HUNG_UP:
            return Verdict(Outcome.DISCONNECTED)
        if self._done_at is None:
            return self._cut_off(end)
        return self._counted()

    def _payload(self, payload: bytes, at_s: float) -> bool:
        if payload == _DONE:
            self._done_at = at_s
            return True
        try:
            chunk = self._decode(payload)
        except msgspec.DecodeError as error:
            self._broken = Verdict(Outcome.FAILED, "malformed", f"chunk: {error}"[:_MAX_DETAIL])
            return False
        if bytes(chunk.error) not in (b"", b"null"):
            message = error_message(b'{"error":%b}' % bytes(chunk.error))
            self._broken = Verdict(Outcome.FAILED, "error_frame", message)
            return False
        if chunk.usage is not None:
            self._usage = chunk.usage.completion_tokens
        self._count(chunk.choices, at_s)
        limit = self._request.plan.hang_up_after
        return limit is None or self._seen < limit

    def _count(self, choices: list[_Choice], at_s: float) -> None:
        arrived = 0
        for choice in choices:
            if choice.token_ids is None:
                arrived += _carries_token(choice)
            else:
                self._exact = True
                arrived += len(choice.token_ids)
            self.finish_reason = choice.finish_reason or self.finish_reason
        if arrived:
            self._seen += arrived
            self.token_times.append(at_s)

    def _declined(self, kind: Kind) -> Verdict:
        message = error_message(self._error_body)
        if self.retry_after or self.status == _TOO_MANY_REQUESTS:
            return Verdict(Outcome.REJECTED, "", message)
        if kind is Kind.BAD and self.status is not None and 400 <= self.status < 500:
            return Verdict(Outcome.BAD_REFUSED, "", message)
        return Verdict(Outcome.FAILED, f"http_{self.status}", message)

    def _cut_off(self, end: End) -> Verdict:
        if end is End.COMPLETE:
            return Verdict(Outcome.FAILED, "no_done", "the stream ended without [DONE]")
        detail = f"{end} while {self.phase} was awaited"
        return Verdict(Outcome.FAILED, "malformed" if end is End.MALFORMED else "closed", detail)

    def _counted(self) -> Verdict:
        expected = self._request.expected_tokens
        counts = {self.tokens, self._seen} if self._exact else {self.tokens}
        if expected is not None and counts != {expected}:
            detail = f"{'/'.join(map(str, sorted(counts)))} tokens instead of {expected}"
            return Verdict(Outcome.FAILED, "wrong_count", detail)
        if not self.token_times and self.tokens:
            return Verdict(Outcome.FAILED, "wrong_count", "usage counts tokens that never came")
        return Verdict(Outcome.OK)
