"""Sends planned requests to one server and records what became of each.

Whatever goes wrong with a request becomes its record; nothing escapes into the run.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from benchmarks.load.http1 import ConnectionPool
from benchmarks.load.prompts import Api
from benchmarks.load.records import Outcome, PreparedRequest, RequestRecord
from benchmarks.load.stream import CompletionStream, End, Verdict, error_message
from twinflow.protos.errors import Unavailable

_LOOKUP_TIMEOUT_S = 10.0


class LoadClient:
    """Requests to one server.

    Args:
        pool: connections to the server.
        api: which endpoint to call.
        timeout_s: deadline of each request, from the moment it is started.
        clock: monotonic seconds.
    """

    def __init__(
        self, pool: ConnectionPool, api: Api, timeout_s: float, clock: Callable[[], float]
    ) -> None:
        self._pool = pool
        self._path = f"/v1/{api}"
        self._timeout_s = timeout_s
        self._clock = clock

    async def send(self, request: PreparedRequest, origin_s: float) -> RequestRecord:
        """Send one request now and wait for its outcome.

        Args:
            request: what to send.
            origin_s: clock reading at the start of the run, from which recorded times count.
        """
        started = self._clock()
        wire = self._pool.endpoint.post(self._path, request.body, request.request_id)
        stream = CompletionStream(request)
        verdict = await self._outcome(wire, stream)
        finished = self._clock() if stream.done_at is None else stream.done_at
        return RequestRecord(
            index=request.plan.index,
            kind=request.plan.kind,
            outcome=verdict.outcome,
            due_s=request.plan.due_s,
            started_s=started - origin_s,
            finished_s=finished - origin_s,
            input_tokens=request.plan.shape.input_tokens,
            tokens=stream.tokens,
            token_times_s=tuple(at - origin_s for at in stream.token_times),
            request_id=request.request_id,
            failure=verdict.failure,
            detail=verdict.detail,
            status=stream.status,
            extra=_extra(stream),
        )

    async def _outcome(self, wire: bytes, stream: CompletionStream) -> Verdict:
        try:
            async with asyncio.timeout(self._timeout_s):
                end = await self._pool.exchange(wire, stream)
        except TimeoutError:
            detail = f"{stream.phase} did not come within {self._timeout_s:g} s"
            return Verdict(Outcome.FAILED, "timeout", detail)
        except OSError as error:
            return Verdict(Outcome.FAILED, "connect", str(error))
        return stream.verdict(end)


def _extra(stream: CompletionStream) -> Mapping[str, str]:
    facts = {
        "finish_reason": stream.finish_reason,
        "count_source": stream.count_source if stream.token_times else "",
        "retry_after": stream.retry_after,
    }
    return {name: value for name, value in facts.items() if value}


@dataclass(slots=True)
class _Document:
    """Sink that collects a whole body."""

    status: int = 0
    content: bytes = b""

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status

    def body(self, data: bytes, at_s: float) -> bool:
        self.content += data
        return True


async def get_json(pool: ConnectionPool, path: str) -> object:
    """GET a JSON document.

    Raises:
        Unavailable: no answer within 10 s, an answer other than 200, or not JSON.
    """
    document = _Document()
    where = f"{pool.endpoint.url}{path}"
    try:
        async with asyncio.timeout(_LOOKUP_TIMEOUT_S):
            end = await pool.exchange(pool.endpoint.get(path), document)
    except TimeoutError as error:
        raise Unavailable(f"{where} did not answer within {_LOOKUP_TIMEOUT_S:g} s") from error
    except OSError as error:
        raise Unavailable(f"{where} cannot be reached: {error}") from error
    if end is not End.COMPLETE or document.status != 200:
        reason = error_message(document.content) or str(end)
        raise Unavailable(f"{where} answered {document.status}: {reason}")
    try:
        return msgspec.json.decode(document.content)
    except msgspec.DecodeError as error:
        raise Unavailable(f"{where} did not answer with JSON: {error}") from error


async def first_model(pool: ConnectionPool) -> str:
    """The name of the first model that the server lists."""
    listing = await get_json(pool, "/v1/models")
    try:
        return msgspec.convert(listing, _Listing).data[0].id
    except (msgspec.ValidationError, IndexError) as error:
        raise Unavailable("/v1/models lists no model: give --model") from error


class _Model(msgspec.Struct):
    id: str


class _Listing(msgspec.Struct):
    data: list[_Model]
