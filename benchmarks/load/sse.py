"""Decoder of server-sent events. Bytes in, payloads out; it does no I/O.

Follows the WHATWG stream format as far as OpenAI-compatible servers use it: `data` lines, several
of which make one payload, comments, other fields ignored, lines ended by LF or CRLF. A bare CR
does not end a line.
"""

_MAX_EVENT_BYTES = 16 * 1024 * 1024


class EventTooLarge(ValueError):
    """More bytes than any event may have arrived without the blank line that ends an event."""


class SseDecoder:
    """Splits a byte stream, cut anywhere, into the payloads of its events."""

    def __init__(self) -> None:
        self._partial = b""
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, received: bytes) -> list[bytes]:
        """Take more bytes; return the payloads of the events that are now complete.

        Raises:
            EventTooLarge: the event under way exceeds 16 MiB.
        """
        lines = (self._partial + received).split(b"\n")
        self._partial = lines.pop()
        payloads: list[bytes] = []
        for line in lines:
            self._take(line.removesuffix(b"\r"), payloads)
        if self._held + len(self._partial) > _MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event of more than {_MAX_EVENT_BYTES} bytes")
        return payloads

    def _take(self, line: bytes, payloads: list[bytes]) -> None:
        if not line:
            if self._data:
                payloads.append(b"\n".join(self._data))
            self._data, self._held = [], 0
        elif line.startswith(b"data:"):
            value = line[5:].removeprefix(b" ")
            self._data.append(value)
            self._held += len(value)
