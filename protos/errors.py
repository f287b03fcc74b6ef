"""The one exception tree of twinflow.

    TwinflowError
    ├── SetupError                  the operator's: found before serving starts, exit status 2
    │   ├── ConfigError             a flag, a config key or an environment variable
    │   └── CheckpointError         a model directory that cannot be served
    ├── ClientError                 the caller's: HTTP 4xx, never held against a worker
    │   ├── InvalidRequest          a field has a value that cannot be served
    │   │   └── ContextLengthExceeded
    │   ├── Unauthenticated
    │   ├── ModelNotFound
    │   ├── PayloadTooLarge
    │   ├── UnsupportedMediaType
    │   ├── Overloaded              a bounded queue is full
    │   └── Cancelled               the caller went away
    └── ServerError                 ours: HTTP 5xx
        ├── Unavailable             starting, draining, or no worker is left
        ├── DeadlineExceeded
        ├── WorkerLost              a worker died or was given up on
        ├── EngineError             a step failed
        └── HandoffError            KV blocks did not arrive, or not as promised
            └── LinkError           the data connection of two workers broke

Which HTTP or gRPC status an error has follows from its class. Every member passes all of its
arguments to `super().__init__`, so that it survives pickling between processes. This module does
not know how errors are rendered: front doors do that.
"""

from typing import ClassVar


class TwinflowError(Exception):
    """Base of everything that twinflow raises on purpose.

    Class attributes:
        code: stable name of the error, sent to clients and between processes.
        http_status: HTTP status of a response that reports it.
        grpc_status: name of the `grpc.StatusCode` of a call that fails with it.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *details: object) -> None:
        super().__init__(message, *details)
        self.message = message

    def __str__(self) -> str:
        return self.message


class SetupError(TwinflowError):
    """Serving cannot start; the message says what to change."""

    code = "setup_error"


class ConfigError(SetupError):
    """A flag, config key or environment variable is unknown or has an unusable value."""

    code = "config_error"


class CheckpointError(SetupError):
    """A model directory is incomplete, damaged or not supported."""

    code = "checkpoint_error"


class ClientError(TwinflowError):
    """The caller's request cannot be served as it stands.

    Args:
        message: one sentence for the caller; never echoes unbounded input.
        param: the request field at fault, if one is.
    """

    code = "invalid_request"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"

    def __init__(self, message: str, param: str | None = None, *details: object) -> None:
        super().__init__(message, param, *details)
        self.param = param


class InvalidRequest(ClientError):
    """A field is missing, of the wrong type, out of bounds or not supported."""


class ContextLengthExceeded(InvalidRequest):
    """The prompt, or the prompt and `max_tokens`, do not fit into the context."""

    code = "context_length_exceeded"


class Unauthenticated(ClientError):
    """No API key, or not a valid one."""

    code = "invalid_api_key"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"


class ModelNotFound(ClientError):
    """The request names a model that is not served here."""

    code = "model_not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"


class PayloadTooLarge(ClientError):
    """The body is larger than the limit."""

    code = "payload_too_large"
    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class UnsupportedMediaType(ClientError):
    """The body is not UTF-8 JSON."""

    code = "unsupported_media_type"
    http_status = 415


class Overloaded(ClientError):
    """A bounded queue is full; the request was not started.

    Args:
        message: which bound was met.
        param: unused, for symmetry with the base class.
        retry_after_s: when trying again makes sense.
    """

    code = "rate_limit_exceeded"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, param: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, param, retry_after_s)
        self.retry_after_s = retry_after_s


class Cancelled(ClientError):
    """The caller went away or aborted the request."""

    code = "cancelled"
    http_status = 499
    grpc_status = "CANCELLED"


class ServerError(TwinflowError):
    """Something on our side failed."""


class Unavailable(ServerError):
    """Starting, draining, or without a worker that could serve the request.

    Args:
        message: what is missing.
        retry_after_s: when trying again makes sense.
    """

    code = "service_unavailable"
    http_status = 503
    grpc_status = "UNAVAILABLE"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ServerError):
    """A wait ended without its event; the message names peer, phase and deadline."""

    code = "deadline_exceeded"
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"


class WorkerLost(ServerError):
    """A worker died, froze or left while it held the request."""

    code = "worker_lost"
    http_status = 500
    grpc_status = "UNAVAILABLE"


class RankLost(WorkerLost):
    """A rank of a worker died or froze, which ends the whole worker; the message names it."""

    code = "rank_lost"


class EngineError(ServerError):
    """An engine step failed for the request."""

    code = "engine_error"


class HandoffError(ServerError):
    """KV blocks did not arrive, or did not match what was promised."""

    code = "handoff_error"


class LinkError(HandoffError):
    """The data connection of two workers broke or could not be made."""

    code = "link_error"


class StaleLink(LinkError):
    """A connection that was kept from an earlier hand-off is dead; a new one may do."""

    code = "stale_link"


# Never raised: each shares its code with the class below it that is.
_ROOTS: frozenset[type[TwinflowError]] = frozenset({TwinflowError, ClientError})


def subclasses_by_code() -> dict[str, type[TwinflowError]]:
    """Every error class that is raised, by its code; where codes are shared, the most general."""
    found: dict[str, type[TwinflowError]] = {}
    pending: list[type[TwinflowError]] = [TwinflowError]
    while pending:
        cls = pending.pop(0)
        if cls not in _ROOTS:
            found.setdefault(cls.code, cls)
        pending.extend(cls.__subclasses__())
    return found


def from_code(code: str, message: str) -> TwinflowError:
    """Rebuild an error that another process sent as (code, message)."""
    return subclasses_by_code().get(code, ServerError)(message)
