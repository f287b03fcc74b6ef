"""What a client writes down of streams that end in every way."""

import time

import pytest
from tests.support.stream_server import DONE, ERROR, LAST, TOKEN, USAGE, answering

from twinflow.cluster.chaos.history import EndKind, RequestRecord
from twinflow.cluster.chaos.stream import ask, look


def record_of(body: str, status: int = 200) -> RequestRecord:
    record = RequestRecord("r", 0, time.time())
    with answering(body, status) as endpoint:
        ask(endpoint, {}, record, patience_s=20, clock=time.time)
    return record


def test_a_stream_that_is_complete() -> None:
    record = record_of(TOKEN + LAST + USAGE + DONE)
    assert record.finished
    assert (record.tokens, record.reported) == ([7, 8], 2)
    assert len(record.token_times) == 2


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        (TOKEN, [EndKind.SILENT]),
        ("", [EndKind.SILENT]),
        (TOKEN + DONE, [EndKind.SILENT]),
        (TOKEN + LAST, [EndKind.SILENT]),
        (TOKEN + ERROR, [EndKind.FAILED]),
        (TOKEN + ERROR + DONE, [EndKind.FAILED, EndKind.SILENT]),
        (TOKEN + LAST + DONE + DONE, [EndKind.FINISHED, EndKind.FINISHED]),
        (LAST + LAST + DONE, [EndKind.FAILED, EndKind.FINISHED]),
        (LAST + DONE + ERROR, [EndKind.FINISHED, EndKind.FAILED]),
        ("data: nonsense\n\n", [EndKind.FAILED]),
    ],
)
def test_streams_that_are_not(body: str, kinds: list[EndKind]) -> None:
    record = record_of(body)
    assert [end.kind for end in record.ends] == kinds
    assert not record.finished


def test_tokens_behind_an_end_are_told_from_those_before() -> None:
    record = record_of(LAST + DONE + TOKEN)
    assert (len(record.tokens), record.ends[0].num_tokens) == (2, 1)


def test_health_is_asked_for() -> None:
    with answering("fine") as endpoint:
        answer = look(endpoint, "/ready", patience_s=20, clock=time.time)
    assert (answer.status, answer.detail) == (200, "fine")
    assert answer.asked_at <= answer.answered_at


def test_a_refusal() -> None:
    record = record_of('{"error": {"message": "full"}}', 429)
    assert record.ends[0].kind is EndKind.REFUSED
    assert "429" in record.ends[0].detail


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ("0\r\n\r\n", EndKind.SILENT),
        ("", EndKind.BROKEN),
        ("9\r\n", EndKind.BROKEN),
        ("9\r\ndata", EndKind.BROKEN),
    ],
)
def test_chunks_that_stop_are_no_end(end: str, kind: EndKind) -> None:
    record = RequestRecord("r", 0, 0.0)
    with answering(f"{len(TOKEN):x}\r\n{TOKEN}\r\n{end}", chunked=True) as endpoint:
        ask(endpoint, {}, record, patience_s=20, clock=time.time)
    assert record.tokens == [7]
    assert [one.kind for one in record.ends] == [kind]


def test_a_client_that_goes_away() -> None:
    record = RequestRecord("r", 0, 0.0)
    with answering(TOKEN + LAST + DONE) as endpoint:
        ask(endpoint, {}, record, patience_s=20, clock=time.time, leave_after=1)
    assert record.tokens == [7]
    assert [one.kind for one in record.ends] == [EndKind.LEFT]
    assert record.as_meant


def test_a_connection_that_breaks_or_was_never_made() -> None:
    cut, refused = RequestRecord("cut", 0, 0.0), RequestRecord("refused", 0, 0.0)
    with answering(TOKEN, length=1000) as endpoint:
        ask(endpoint, {}, cut, patience_s=20, clock=time.time)
    ask(endpoint, {}, refused, patience_s=20, clock=time.time)
    assert [end.kind for end in refused.ends] == [EndKind.BROKEN]
    assert cut.tokens == [7]
    assert [end.kind for end in cut.ends] == [EndKind.BROKEN]
    assert look(endpoint, "/ready", patience_s=20, clock=time.time).status == 0
