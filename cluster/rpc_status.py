"""Errors as `google.rpc.Status`, and back.

    TwinflowError ─ to_status ─► Status ─ trailing metadata ─► from_trailers ─► TwinflowError

A status carries `ErrorInfo` (reason: the error's code, domain: twinflow), `BadRequest` with the
field at fault, `RetryInfo` when trying again makes sense and `RequestInfo` with the request's id.
A status without our `ErrorInfo` was made by gRPC itself or by a proxy: its code is all there is to
go by, `class_of` says how. Nothing here knows which call failed, or retries it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2 as details_pb
from google.rpc import status_pb2

from twinflow.protos import errors
from twinflow.protos.errors import TwinflowError

DOMAIN = "twinflow"
DETAILS_KEY = "grpc-status-details-bin"
# Status messages and details travel as HTTP/2 headers, which peers bound to 8 KiB together.
MAX_MESSAGE = 1024

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]

# Classes of statuses that gRPC itself makes, before or instead of a front door.
_BY_GRPC_CODE: dict[grpc.StatusCode, type[TwinflowError]] = {
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.PayloadTooLarge,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
}


def to_status(error: TwinflowError, request_id: str = "") -> status_pb2.Status:
    """The status that reports `error` to a caller."""
    details: list[Message] = [details_pb.ErrorInfo(reason=error.code, domain=DOMAIN)]
    param = getattr(error, "param", None)
    if param is not None:
        violation = details_pb.BadRequest.FieldViolation(
            field=param, description=error.message[:MAX_MESSAGE]
        )
        details.append(details_pb.BadRequest(field_violations=[violation]))
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        retry = details_pb.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(retry_after_s * 1000))
        details.append(retry)
    if request_id:
        details.append(details_pb.RequestInfo(request_id=request_id))
    status = status_pb2.Status(
        code=grpc.StatusCode[error.grpc_status].value[0], message=error.message[:MAX_MESSAGE]
    )
    for detail in details:
        status.details.add().Pack(detail)
    return status


def from_trailers(message: str, trailers: Metadata | None) -> TwinflowError | None:
    """The error that a failed call reports, its param and retry delay included.

    Args:
        message: status message of the call.
        trailers: trailing metadata of the call.

    Returns:
        The error that a twinflow server raised; None if no twinflow server made the status.
    """
    found = _details(trailers)
    return _rebuilt(message, found) if found.info.domain == DOMAIN else None


def class_of(code: grpc.StatusCode) -> type[TwinflowError]:
    """The class that a bare status code stands for; ServerError if for none."""
    return _BY_GRPC_CODE.get(code, errors.ServerError)


@dataclass(frozen=True, slots=True)
class _Details:
    """The details of a status that say what an error was; empty messages where it has none."""

    info: Any = field(default_factory=details_pb.ErrorInfo)
    bad_request: Any = field(default_factory=details_pb.BadRequest)
    retry: Any = field(default_factory=details_pb.RetryInfo)


def _details(trailers: Metadata | None) -> _Details:
    found = _Details()
    for key, value in trailers or ():
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            for detail in status_pb2.Status.FromString(value).details:
                for target in (found.info, found.bad_request, found.retry):
                    detail.Unpack(target)
        except DecodeError:  # damaged on the way: the status code still says enough
            return _Details()
    return found


def _rebuilt(message: str, found: _Details) -> TwinflowError:
    cls = errors.subclasses_by_code().get(found.info.reason, errors.ServerError)
    violations = found.bad_request.field_violations
    param = violations[0].field if violations else None
    retry_after_s = found.retry.retry_delay.ToMilliseconds() / 1000
    if issubclass(cls, errors.Overloaded):
        return cls(message, param, retry_after_s)
    if issubclass(cls, errors.Unavailable):
        return cls(message, retry_after_s)
    if issubclass(cls, errors.ClientError):
        return cls(message, param)
    return cls(message)
