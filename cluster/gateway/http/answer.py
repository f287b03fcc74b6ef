"""A response that generates: whole, or as server-sent events.

                          ┌─► error before the first token: a status
    admit ─► first token ─┤
                          └─► headers ─► one event per delta ─► [DONE], or an error event

A stream's status is sent with its first token, so that everything that fails before is an
ordinary error that clients may retry. A stream that breaks later says so in its last event. When
the client goes away, everything is aborted at once.
"""

import asyncio
from collections.abc import Coroutine

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from twinflow.cluster.gateway.generation import CompletionDelta, Generation, collect
from twinflow.cluster.gateway.http.answer_format import AnswerFormat
from twinflow.cluster.gateway.http.errors import error_body
from twinflow.cluster.gateway.http.gate import error_response, log_failure
from twinflow.cluster.gateway.text_pipeline import Call, TextPipeline
from twinflow.cluster.gateway.validation import GenerationRequest
from twinflow.protos.errors import Cancelled, TwinflowError, Unavailable

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class AnswerResponse(Response):
    """Runs one request; raises what happens before the response has begun.

    Args:
        pipeline: runs it.
        request: what to run.
        call: who asks.
        answer_format: the shape of the answer.
        headers: further ones, of an answer that is no error.
    """

    def __init__(
        self,
        pipeline: TextPipeline,
        request: GenerationRequest,
        call: Call,
        answer_format: AnswerFormat,
        headers: dict[str, str],
    ) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._request = request
        self._call = call
        self._format = answer_format
        self._further = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_disconnected(receive, self._respond(scope, receive, send))

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._pipeline.open(self._request, self._call) as generation:
            if self._request.options.stream:
                await self._stream(generation, send)
                return
            response = await self._whole(generation)
        await response(scope, receive, send)

    async def _whole(self, generation: Generation) -> Response:
        try:
            outputs = await collect(generation)
        except TwinflowError as error:
            if not generation.delivered:
                raise
            # A client that tries again by itself would have the same tokens generated again.
            return error_response(error, self._call.request_id, retry=False)
        body = self._format.whole(generation, outputs)
        return Response(body, headers=self._further, media_type="application/json")

    async def _stream(self, generation: Generation, send: Send) -> None:
        delta = await anext(generation)
        further = [(name.encode(), value.encode()) for name, value in self._further.items()]
        headers = [*_STREAM_HEADERS, *further]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        end = await self._events(generation, delta, send)
        await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _events(self, generation: Generation, delta: CompletionDelta, send: Send) -> bytes:
        """Send an event per delta, beginning with `delta`; returns what ends the stream."""
        first = True
        try:
            while True:
                event = self._format.frame(generation, delta, first=first)
                if event:
                    first = False
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                delta = await anext(generation)
        except StopAsyncIteration:
            return self._format.last_frames(generation)
        except asyncio.CancelledError:  # the client is gone, or the server stops and it is told
            return self._error_event(Unavailable("The server is shutting down."))
        except Exception as error:  # noqa: BLE001 - the status is sent; only an event can tell
            log_failure("stream broke", error, self._call.request_id)
            return self._error_event(error)

    def _error_event(self, error: Exception) -> bytes:
        return b"data: " + error_body(error, self._call.request_id) + b"\n\n"


async def unless_disconnected(receive: Receive, work: Coroutine[object, object, None]) -> None:
    """Run `work`, whose request has been read, as long as the client is there.

    Raises:
        Cancelled: the client went away; `work` has been cancelled and has ended.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled("The client went away.")
        working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
