"""The event decoder, whatever the network cuts."""

import pytest
from benchmarks.load import sse
from benchmarks.load.sse import EventTooLarge, SseDecoder

STREAM = (
    b": comment\n\ndata: one\n\nevent: x\r\ndata:two\r\nid: 7\r\n\r\n"
    b"data: three\ndata: and more\n\n\n\ndata: [DONE]\n\n"
)
PAYLOADS = [b"one", b"two", b"three\nand more", b"[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_payloads_do_not_depend_on_where_the_stream_is_cut(size: int) -> None:
    decoder = SseDecoder()
    found = []
    for start in range(0, len(STREAM), size):
        found += decoder.feed(STREAM[start : start + size])
    assert found == PAYLOADS


def test_an_event_is_held_until_its_blank_line() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\n") == [b"a"]
    assert decoder.feed(b"data: cut off") == []


@pytest.mark.parametrize("line", [b"data: " + b"x" * 100, b"data: xxxxxxxxx\n" * 12])
def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    monkeypatch.setattr(sse, "_MAX_EVENT_BYTES", 64)
    with pytest.raises(EventTooLarge):
        SseDecoder().feed(line)
