"""The one way into the application: every request passes here, whatever its route.

    id ─ key ─ caller's own id ─► routes ─ every error becomes a response ─►

A request without a valid key is refused before its body is read, unknown routes included; only
the three health routes and the files of the dashboard are open. The client's `X-Request-Id` is
checked and echoed, never parsed and never used inside.
"""

import asyncio
import re
import uuid
from collections.abc import Callable
from http import HTTPStatus

import structlog
from fastapi import Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twinflow.cluster.gateway.auth import Authenticator
from twinflow.cluster.gateway.http.dashboard_routes import PAGE_PATHS
from twinflow.cluster.gateway.http.errors import (
    error_body,
    error_headers,
    error_status,
    plain_error_body,
)
from twinflow.cluster.gateway.text_pipeline import Call
from twinflow.protos.errors import (
    Cancelled,
    InvalidRequest,
    TwinflowError,
    Unauthenticated,
    Unavailable,
)

OPEN_PATHS = frozenset({"/health", "/ready", "/live"}) | PAGE_PATHS
_CALL = "twinflow.call"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Gate:
    """ASGI middleware; the outermost one.

    Args:
        app: the routes.
        authenticator: decides who may call.
        clock: seconds, monotonic; the pipeline's.
        deadline_s: time a request may take.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        clock: Callable[[], float],
        deadline_s: float,
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._clock = clock
        self._deadline_s = deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call(str(uuid.uuid4()), self._clock(), deadline_s=self._deadline_s)
        sender = _Sender(send, call.request_id)
        try:
            key_id = self._authenticate(scope)
            sender.request_id = _client_request_id(scope) or call.request_id
            call = Call(call.request_id, call.received_at, key_id, call.deadline_s)
            await self._app({**scope, _CALL: call}, receive, sender)
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            if not sender.started:
                stopping = Unavailable("The server is shutting down.")
                await self._report(stopping, call, scope, receive, sender)
        except Exception as error:  # noqa: BLE001 - the fence: no error of a request leaves it
            await self._report(error, call, scope, receive, sender)

    def _authenticate(self, scope: Scope) -> str:
        if scope["path"] in OPEN_PATHS:
            return ""
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(values) > 1:
            raise Unauthenticated("Exactly one Authorization header is allowed.")
        return self._authenticator.check(values[0].decode("latin-1") if values else None)

    async def _report(
        self, error: Exception, call: Call, scope: Scope, receive: Receive, sender: "_Sender"
    ) -> None:
        if isinstance(error, Cancelled):
            return  # nobody is left to tell
        if error_status(error) == HTTPStatus.INTERNAL_SERVER_ERROR:
            log_failure("request failed", error, call.request_id)
        if sender.started:
            raise error  # too late for a status; the server closes the connection
        await error_response(error, call.request_id)(scope, receive, sender)


class _Sender:
    """Marks every response with the id of its request."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            header = (b"x-request-id", self.request_id.encode("ascii"))
            message = {**message, "headers": [*message.get("headers", ()), header]}
        await self._send(message)


def call_of(request: Request) -> Call:
    """The call that brought a request, as the gate has seen it."""
    call: Call = request.scope[_CALL]
    return call


def error_response(error: Exception, request_id: str, *, retry: bool = True) -> Response:
    """A response that reports an error."""
    return Response(
        error_body(error, request_id),
        error_status(error),
        error_headers(error, retry=retry),
        "application/json",
    )


def log_failure(event: str, error: Exception, request_id: str) -> None:
    """Write down what the client is not told; a traceback only for what nobody foresaw."""
    foreseen = isinstance(error, TwinflowError)
    structlog.get_logger().error(
        event,
        request_id=request_id,
        kind=type(error).__name__,
        problem=str(error),
        exc_info=None if foreseen else error,
    )


async def http_error(_request: Request, error: Exception) -> Response:
    """Turn an error of the router (no such route, wrong method) into OpenAI's shape."""
    if not isinstance(error, HTTPException):
        raise error
    phrase = HTTPStatus(error.status_code).phrase
    body = plain_error_body(f"{phrase}.", phrase.lower().replace(" ", "_"))
    return Response(body, error.status_code, error.headers, "application/json")


def _client_request_id(scope: Scope) -> str | None:
    values = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if not values:
        return None
    text: str = values[0].decode("latin-1")
    if len(values) > 1 or not _REQUEST_ID.fullmatch(text):
        raise InvalidRequest(
            "X-Request-Id must be 1 to 128 letters, digits, dots, dashes or underscores.",
            "X-Request-Id",
        )
    return text
