"""A method of a gRPC service, reduced to one shape: messages in, messages out.

gRPC's four kinds of method look alike on the wire. Serving all of them as streams of bytes lets
one place decode, count and time messages, so that a request that is not a message of ours, or not
one message, is the caller's error instead of an exception in gRPC's machinery. Nothing here
authenticates or reports errors: `Entrance` does.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from twinflow.cluster.gateway.text_pipeline import Call
from twinflow.protos.errors import Cancelled, InvalidRequest

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

# Bytes in, bytes out, whatever the method.
RawContext: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[RequestT, ResponseT]):
    """One method.

    Attributes:
        request: type of the messages that it takes.
        serve: turns them into its answers.
        health: part of the health service: open to callers without a key and while draining,
            and without a deadline of its own.
        admin: for operators: open to callers with an admin token only.
    """

    request: type[RequestT]
    serve: Callable[[AsyncIterator[RequestT], Call], AsyncIterator[ResponseT]]
    health: bool = False
    admin: bool = False

    async def messages(self, context: RawContext) -> AsyncIterator[RequestT]:
        """The messages of a call as they arrive.

        Raises:
            InvalidRequest: the bytes are not a message of this type.
        """
        while isinstance(raw := await context.read(), bytes):  # else it is grpc.aio.EOF
            try:
                message = self.request.FromString(raw)
            except DecodeError:  # garbage, truncated, or a string that is not UTF-8
                name = self.request.DESCRIPTOR.full_name
                raise InvalidRequest(f"The request is not a valid {name} message.") from None
            yield message


@dataclass(frozen=True, slots=True)
class Single:
    """Reads requests of methods that take exactly one message.

    Attributes:
        timeout_s: from the start of a call until its message is complete.
        admin: the methods are for operators.
    """

    timeout_s: float
    admin: bool = False

    def unary(
        self,
        request: type[RequestT],
        method: Callable[[RequestT, Call], Awaitable[ResponseT]],
        *,
        health: bool = False,
    ) -> Endpoint[RequestT, ResponseT]:
        """A method that answers with one message."""

        async def serve(requests: AsyncIterator[RequestT], call: Call) -> AsyncIterator[ResponseT]:
            yield await method(await self._only(requests), call)

        return Endpoint(request, serve, health, self.admin)

    def server_stream(
        self,
        request: type[RequestT],
        method: Callable[[RequestT, Call], AsyncIterator[ResponseT]],
        *,
        health: bool = False,
    ) -> Endpoint[RequestT, ResponseT]:
        """A method that answers with a stream."""

        async def serve(requests: AsyncIterator[RequestT], call: Call) -> AsyncIterator[ResponseT]:
            responses: Any = method(await self._only(requests), call)
            try:
                async for response in responses:
                    yield response
            finally:
                await responses.aclose()

        return Endpoint(request, serve, health, self.admin)

    async def _only(self, requests: AsyncIterator[RequestT]) -> RequestT:
        found: list[RequestT] = []
        try:
            async with asyncio.timeout(self.timeout_s):
                async for message in requests:
                    found.append(message)
                    if len(found) > 1:
                        break
        except TimeoutError:
            raise Cancelled(
                f"The caller did not complete its request within {self.timeout_s:g} s."
            ) from None
        if len(found) != 1:
            raise InvalidRequest("The method takes exactly one request message.")
        return found[0]
