"""Errors survive the way over gRPC."""

import grpc
import pytest

from twinflow.cluster import rpc_status
from twinflow.protos import errors
from twinflow.protos.errors import TwinflowError

ERRORS: list[TwinflowError] = [
    errors.InvalidRequest("top_p must be at most 1.", "top_p"),
    errors.InvalidRequest("The request is not valid."),
    errors.ContextLengthExceeded("The prompt is too long.", "prompt"),
    errors.ModelNotFound("No such model.", "model"),
    errors.Unauthenticated("An API key is required."),
    errors.Overloaded("The queue is full.", retry_after_s=2.5),
    errors.Unavailable("Draining.", retry_after_s=0.25),
    errors.DeadlineExceeded("decode-0 did not answer within 3 s."),
    errors.WorkerLost("decode-0 is gone."),
    errors.EngineError("The step failed."),
    errors.LinkError("The link broke."),
    errors.ServerError("The server failed."),
]


def over_the_wire(error: TwinflowError) -> TwinflowError | None:
    status = rpc_status.to_status(error, "id-1")
    assert grpc.StatusCode[error.grpc_status].value[0] == status.code
    trailers = [("x-other", "1"), (rpc_status.DETAILS_KEY, status.SerializeToString())]
    return rpc_status.from_trailers(status.message, trailers)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_back_as_it_was(error: TwinflowError) -> None:
    back = over_the_wire(error)
    assert type(back) is type(error)
    assert back is not None and back.args == error.args


def test_the_roots_come_back_as_what_is_raised_below_them() -> None:
    assert type(over_the_wire(errors.ClientError("No."))) is errors.InvalidRequest
    assert type(over_the_wire(TwinflowError("No."))) is errors.ServerError


def test_a_status_stays_small_enough_for_a_header() -> None:
    status = rpc_status.to_status(errors.InvalidRequest("x" * 100_000, "prompt"), "id-1")
    assert len(status.SerializeToString()) + len(status.message) < 8192


@pytest.mark.parametrize(
    "trailers",
    [
        None,
        [],
        [("grpc-status-details-bin", b"\xff\xff")],
        [("grpc-status-details-bin", "text")],
        [("grpc-status-details-bin", b"")],
    ],
)
def test_a_status_of_somebody_else_is_no_error_of_ours(
    trailers: list[tuple[str, str | bytes]] | None,
) -> None:
    assert rpc_status.from_trailers("message", trailers) is None


def test_an_unknown_code_is_a_server_error() -> None:
    class Newer(errors.ServerError):
        code = "from_the_future"

    status = rpc_status.to_status(Newer("Something new."))
    status.details[0].value = status.details[0].value.replace(b"from_the", b"past_the")
    back = rpc_status.from_trailers(
        status.message, [(rpc_status.DETAILS_KEY, status.SerializeToString())]
    )
    assert type(back) is errors.ServerError


def test_bare_codes_have_classes() -> None:
    assert rpc_status.class_of(grpc.StatusCode.UNAVAILABLE) is errors.Unavailable
    assert rpc_status.class_of(grpc.StatusCode.DATA_LOSS) is errors.ServerError
