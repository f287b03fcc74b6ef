"""Calls that block until they are answered, shared by the clients that do."""

from collections.abc import Generator
from types import TracebackType
from typing import Self

import grpc

from twinflow.cluster.client.session import Ask, RequestT, ResponseT, Session


class BlockingCalls:
    """A connection to a server; may be used by several threads at once.

    Args:
        session: where to, and what calls carry.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        options, tls = session.channel_options, session.tls
        if tls is None:
            self._channel = grpc.insecure_channel(session.target, options)
        else:
            self._channel = grpc.secure_channel(session.target, tls.credentials(), options)

    def close(self) -> None:
        """Cancel the calls in progress and close the connection."""
        self._channel.close()

    def unary(self, ask: Ask[RequestT, ResponseT]) -> ResponseT:
        """One answer.

        Raises:
            TwinflowError: see `Session.failures`.
        """
        deadline_s = self._session.deadline_s(ask.timeout_s)
        method = self._channel.unary_unary(ask.rpc.path, ask.rpc.encode, ask.rpc.decode)
        with self._session.failures(ask.rpc, deadline_s):
            response: ResponseT = method(
                ask.request, timeout=deadline_s, metadata=self._session.metadata
            )
        return response

    def stream(self, ask: Ask[RequestT, ResponseT]) -> Generator[ResponseT, None, None]:
        """Answers as they come; closing the generator cancels the call.

        Raises:
            TwinflowError: see `Session.failures`.
        """
        deadline_s = self._session.deadline_s(ask.timeout_s)
        method = self._channel.unary_stream(ask.rpc.path, ask.rpc.encode, ask.rpc.decode)
        call = method(ask.request, timeout=deadline_s, metadata=self._session.metadata)
        try:
            with self._session.failures(ask.rpc, deadline_s):
                yield from call
        finally:
            call.cancel()


class BlockingClient:
    """What clients whose calls block have in common: a connection, and its end.

    Args:
        session: where to, and what calls carry.
    """

    def __init__(self, session: Session) -> None:
        self._calls = BlockingCalls(session)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the calls in progress and close the connection."""
        self._calls.close()
