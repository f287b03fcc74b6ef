"""A client of `/v1/completions` that writes down whatever comes, and believes none of it.

It raises nothing: what goes wrong is what it is there to see. Whether it may go wrong is judged in
`twinflow.cluster.chaos.checker`.
"""

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from twinflow.cluster.chaos.history import End, EndKind, HealthAnswer, RequestRecord

Asking: TypeAlias = dict[str, object]
_DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The HTTP door of a deployment.

    Attributes:
        host: of it.
        port: of it.
        api_key: to show; empty for none.
    """

    host: str
    port: int
    api_key: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        key = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {"content-type": "application/json"} | key

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connection of its own for one request."""
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)


def ask(
    endpoint: Endpoint,
    body: Asking,
    record: RequestRecord,
    *,
    patience_s: float,
    clock: Callable[[], float],
    leave_after: int | None = None,
) -> None:
    """Send a request that streams; note every token and everything that looks like an end.

    Args:
        endpoint: where to.
        body: of the request.
        record: is written.
        patience_s: how long to wait for the next byte.
        clock: Unix time in seconds.
        leave_after: go away after so many tokens; None for never.
    """
    listener = _Listener(record, clock)
    connection = endpoint.connect(patience_s)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), endpoint.headers)
        response = connection.getresponse()
        if response.status != 200:
            text = response.read().decode("utf-8", "replace")
            listener.end(EndKind.REFUSED, f"{response.status} {text[:300]}")
            return
        for line in _lines(response):
            listener.hear(line)
            if leave_after is not None and len(record.tokens) >= leave_after:
                listener.leave()
                return
        listener.close()
    except TimeoutError:
        listener.end(EndKind.SILENCE, f"nothing for {patience_s:g} s")
    except (OSError, http.client.HTTPException) as error:
        listener.end(EndKind.BROKEN, f"{type(error).__name__}: {error}")
    finally:
        connection.close()


def _lines(response: http.client.HTTPResponse) -> Iterator[str]:
    """The lines of a body that is complete.

    Not by the response's own `readline`, which takes the end of a connection for that of the body.

    Raises:
        IncompleteRead: it is not.
    """
    partial = b""
    while data := response.read1():
        *lines, partial = (partial + data).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace").strip()
    if response.length:
        raise http.client.IncompleteRead(partial, response.length)


def look(
    endpoint: Endpoint,
    path: str,
    *,
    patience_s: float,
    clock: Callable[[], float],
    limit: int | None = 300,
) -> HealthAnswer:
    """Ask how a deployment is; of the answer, `limit` characters are kept."""
    asked_at = clock()
    connection = endpoint.connect(patience_s)
    try:
        connection.request("GET", path, headers=endpoint.headers)
        response = connection.getresponse()
        status, detail = response.status, response.read().decode("utf-8", "replace")[:limit]
    except (OSError, http.client.HTTPException) as error:
        status, detail = 0, f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return HealthAnswer(path, asked_at, clock(), status, detail)


class _Listener:
    """Turns the lines of a stream into a record."""

    def __init__(self, record: RequestRecord, clock: Callable[[], float]) -> None:
        self._record = record
        self._clock = clock
        self._reason = ""

    def hear(self, line: str) -> None:
        """Take one line of a stream."""
        if not line:
            return
        data = line.removeprefix("data: ")
        if data == _DONE:
            # Without a reason to finish before it, this explains nothing.
            self.end(EndKind.FINISHED if self._reason else EndKind.SILENT, self._reason)
            return
        try:
            event: Mapping[str, Any] = json.loads(data)
        except ValueError:
            self.end(EndKind.FAILED, f"not JSON: {data[:100]}")
            return
        if "error" in event:
            self.end(EndKind.FAILED, str(event["error"]))
            return
        self._take(event)

    def _take(self, event: Mapping[str, Any]) -> None:
        now, record = self._clock(), self._record
        for choice in event.get("choices", ()):
            tokens = choice.get("token_ids") or []
            record.tokens += tokens
            record.token_times += [now] * len(tokens)
            reason = choice.get("finish_reason")
            if reason and self._reason:
                self.end(EndKind.FAILED, f"finished again: {reason}")
            self._reason = reason or self._reason
        if usage := event.get("usage"):
            record.reported = usage["completion_tokens"]

    def leave(self) -> None:
        """Nobody listens any more."""
        if not self._record.ends:
            self.end(EndKind.LEFT, "")

    def close(self) -> None:
        """The stream has ended in good order."""
        if not self._record.ends:
            self.end(EndKind.SILENT, self._reason)

    def end(self, kind: EndKind, detail: str) -> None:
        """Something that ends the request."""
        tokens = len(self._record.tokens)
        self._record.ends.append(End(self._clock(), kind, detail, tokens))
