"""The one way into the gRPC server: every call of every service passes here.

    bytes ─ who calls? ─ is there room? ─ Endpoint ─ is the answer read? ─► bytes
                         every error becomes a status with details ─┘

Calls without a valid key are refused before their message is read, unknown methods included;
only the health service is open. Operators' methods want a token of their own instead. What went
wrong inside the server stays there: callers learn the kind of the error and the request's id, and
the log the rest.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import structlog
from grpc_status.rpc_status import to_status as to_grpc_status

from twinflow.cluster import rpc_status
from twinflow.cluster.gateway.auth import Authenticator
from twinflow.cluster.gateway.grpc_door.config import GrpcConfig
from twinflow.cluster.gateway.grpc_door.endpoint import Endpoint, RawContext
from twinflow.cluster.gateway.text_pipeline import Call
from twinflow.protos.errors import (
    Cancelled,
    ClientError,
    DeadlineExceeded,
    Overloaded,
    ServerError,
    TwinflowError,
    Unauthenticated,
    Unavailable,
)

# Pipeline and backend end what is late and know why; this much later their call is ended for them.
LATENESS_S = 10.0
DRAINING = "The server is shutting down; send the request to another one."


class _Room:
    """A bound on what goes on at the same time."""

    def __init__(self, limit: int, what: str) -> None:
        self._limit = limit
        self.what = what
        self.taken = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Take room for one; Overloaded if there is none."""
        if self.taken >= self._limit:
            raise Overloaded(f"The server has too many {self.what} in progress; try again later.")
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


@dataclass(frozen=True, slots=True)
class Gates:
    """Who may call what.

    Attributes:
        callers: for everything but
        operators: what changes the deployment.
    """

    callers: Authenticator
    operators: Authenticator


class Entrance(grpc.GenericRpcHandler):
    """Serves endpoints by path.

    Args:
        endpoints: by path, `/package.Service/Method`.
        gates: decide who may call.
        config: limits and time-outs.
        clock: seconds, monotonic; stamps the arrival of calls.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint[Any, Any]],
        gates: Gates,
        config: GrpcConfig,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._endpoints = endpoints
        self._gates = gates
        self._config = config
        self._draining = False
        self._calls = _Room(config.max_calls, "calls")
        self._health_checks = _Room(config.max_health_checks, "health checks")

    @property
    def calls(self) -> int:
        """Calls in progress, health checks apart."""
        return self._calls.taken

    def drain(self) -> None:
        """Refuse new calls, health checks apart; those in progress go on."""
        self._draining = True

    def check_integrity(self) -> None:
        """Raise RuntimeError unless every call that came in has left."""
        for room in (self._calls, self._health_checks):
            if room.taken:
                raise RuntimeError(f"{room.taken} {room.what} are left")

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler of a call that begins; None (UNIMPLEMENTED) for unknown methods."""
        endpoint = self._endpoints.get(handler_call_details.method)
        try:
            key_id = ""
            if endpoint is None or not endpoint.health:
                key_id = self._authenticate(endpoint, handler_call_details.invocation_metadata)
        except Unauthenticated as error:
            return grpc.stream_stream_rpc_method_handler(partial(self._refuse, error))
        if endpoint is None:
            return None
        return grpc.stream_stream_rpc_method_handler(partial(self._serve, endpoint, key_id))

    def _authenticate(
        self, endpoint: Endpoint[Any, Any] | None, metadata: rpc_status.Metadata
    ) -> str:
        for_operators = endpoint is not None and endpoint.admin
        gate = self._gates.operators if for_operators else self._gates.callers
        headers = [value for key, value in metadata if key == "authorization"]
        header = headers[0] if len(headers) == 1 else None
        return gate.check(header if isinstance(header, str) else None)

    async def _refuse(self, error: TwinflowError, _unread: object, context: RawContext) -> None:
        await self._abort(context, error, _new_request_id())

    async def _serve(
        self, endpoint: Endpoint[Any, Any], key_id: str, _unread: object, context: RawContext
    ) -> None:
        call = Call(_new_request_id(), self._clock(), key_id, self._deadline_s(context))
        error: Exception
        try:
            if self._draining and not endpoint.health:
                raise Unavailable(DRAINING)
            with (self._health_checks if endpoint.health else self._calls).one():
                return await self._exchange(endpoint, call, context)
        except grpc.aio.InternalError:  # reading or writing failed, because the call has ended
            error = Cancelled("The caller went away.")
        except grpc.aio.BaseError:
            raise
        except Exception as raised:  # noqa: BLE001 - the fence of a call: its errors end with it
            error = raised
        await self._abort(context, _told(error, call.request_id), call.request_id)

    def _deadline_s(self, context: RawContext) -> float:
        # None without a deadline, whatever the stubs say.
        remaining: float | None = context.time_remaining()
        longest = self._config.max_deadline_s
        return longest if remaining is None else min(remaining, longest)

    async def _exchange(
        self, endpoint: Endpoint[Any, Any], call: Call, context: RawContext
    ) -> None:
        limit_s = None if endpoint.health else call.deadline_s + LATENESS_S
        try:
            async with asyncio.timeout(limit_s):
                responses: Any = endpoint.serve(endpoint.messages(context), call)
                async with aclosing(responses):
                    await self._answer(responses, context)
        except TimeoutError:
            raise DeadlineExceeded(
                f"The request was not finished within its deadline of {call.deadline_s:.3g} s."
            ) from None

    async def _answer(self, responses: Any, context: RawContext) -> None:
        """Write responses, each when the one before has been taken.

        A write that is given up stays with gRPC, which drops it when the connection ends; what
        produced it is closed by then.
        """
        begun = False
        async for response in responses:
            if not begun:
                # Apart from the first message, so that a blocked message blocks no status.
                await context.send_initial_metadata(())
                begun = True
            try:
                async with asyncio.timeout(self._config.write_timeout_s):
                    await context.write(response.SerializeToString())
            except TimeoutError:
                raise Cancelled(
                    f"The caller did not read the answer for {self._config.write_timeout_s:g} s."
                ) from None

    async def _abort(self, context: RawContext, error: TwinflowError, request_id: str) -> None:
        status = to_grpc_status(rpc_status.to_status(error, request_id))
        with suppress(grpc.aio.InternalError):  # the connection ended before the status was taken
            await context.abort_with_status(status)


def _told(error: Exception, request_id: str) -> TwinflowError:
    """What a caller may know of an error; the log gets the rest."""
    if isinstance(error, ClientError | Unavailable):
        return error
    structlog.get_logger().error("gRPC call failed", request_id=request_id, exc_info=error)
    if isinstance(error, DeadlineExceeded):
        return DeadlineExceeded(f"The request was not finished in time (request {request_id}).")
    kind = type(error) if isinstance(error, ServerError) else ServerError
    return kind(f"The server failed to process the request (request {request_id}).")


def _new_request_id() -> str:
    return str(uuid.uuid4())
