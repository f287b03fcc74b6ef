"""Errors as OpenAI's clients expect them.

The status follows from the error's class. What went wrong inside the server stays there: a status
of 500 tells the request's id and the kind of the error, and the log tells the rest.
"""

import math

import msgspec

from twinflow.protos.errors import ClientError, TwinflowError, Unauthenticated, Unavailable

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ErrorDetail(msgspec.Struct, frozen=True):
    """What is inside `error`."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of an error response, and the last frame of a stream that breaks."""

    error: ErrorDetail


def error_body(error: Exception, request_id: str) -> bytes:
    """The JSON of an error; of errors that are not ours, nothing is told."""
    if isinstance(error, ClientError):
        detail = ErrorDetail(
            error.message,
            _TYPES.get(error.http_status, "invalid_request_error"),
            error.param,
            error.code,
        )
    else:
        code = error.code if isinstance(error, TwinflowError) else TwinflowError.code
        told = error.message if isinstance(error, Unavailable) else _told(error, request_id)
        detail = ErrorDetail(told, "server_error", None, code)
    return msgspec.json.encode(ErrorBody(detail))


def plain_error_body(message: str, code: str) -> bytes:
    """The JSON of an error of HTTP itself."""
    return msgspec.json.encode(ErrorBody(ErrorDetail(message, "invalid_request_error", None, code)))


def error_status(error: Exception) -> int:
    """HTTP status of a response that reports an error."""
    return error.http_status if isinstance(error, TwinflowError) else TwinflowError.http_status


def error_headers(error: Exception, *, retry: bool = True) -> dict[str, str]:
    """Headers that belong to an error.

    Args:
        error: what is reported.
        retry: False tells clients that trying again would do harm.
    """
    headers: dict[str, str] = {}
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if not retry:
        headers["x-should-retry"] = "false"
    return headers


def _told(error: Exception, request_id: str) -> str:
    if error_status(error) == 504:
        return f"The request was not finished in time (request {request_id})."
    return f"The server failed to process the request (request {request_id})."
