"""TLS in both directions between the processes of a deployment, with certificates that are renewed.

Whoever shows a certificate that our authority vouches for, and that carries the name of our own,
belongs to the deployment. That name is the first DNS name of the certificate: processes come and
go on addresses that nobody knows beforehand, so the name is of the deployment, not of a machine.

Every new connection looks at the files (`twinflow.workers.certificates`). A set that has changed
is tried before it is used: files that are half written, or do not belong together, leave the last
good ones in force. Connections that exist are not touched. Nothing here encrypts KV blocks, which
do not travel over gRPC.
"""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import grpc
import structlog

from twinflow.protos.errors import ConfigError
from twinflow.workers.certificates import Certificates, load, stamp_of

_STRANGER = "the certificate of the caller does not carry the name of this deployment"


class MutualTls:
    """The certificates of one process, renewed when their files are. Any thread may ask.

    Args:
        directory: holds the three files.

    Raises:
        ConfigError: a file is missing or wrong, or they do not fit each other; names it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._stamp = stamp_of(directory)
        self._current = load(directory)

    @classmethod
    def of(cls, directory: Path | None) -> "MutualTls | None":
        """That of a directory, if there is one."""
        return None if directory is None else cls(directory)

    @property
    def certificates(self) -> Certificates:
        """Those in force: the same object until the files change and the new ones are good."""
        with self._lock:
            with suppress(ConfigError):  # a file that is away for a moment has not changed yet
                self._renew(stamp_of(self._directory))
            return self._current

    def _renew(self, stamp: tuple[object, ...]) -> None:
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            found = load(self._directory)
        except ConfigError as error:
            structlog.get_logger().error("keeps the last certificates", problem=error.message)
        else:
            self._current = found
            structlog.get_logger().info("new certificates", directory=str(self._directory))

    def open_channel(self, address: str, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
        """A channel to a process of the deployment; it keeps the certificates of this moment."""
        return grpc.aio.secure_channel(address, *self._caller(options))

    def open_blocking_channel(self, address: str, options: list[tuple[str, Any]]) -> grpc.Channel:
        """The same for whoever has no event loop."""
        return grpc.secure_channel(address, *self._caller(options))

    def _caller(
        self, options: list[tuple[str, Any]]
    ) -> tuple[grpc.ChannelCredentials, list[tuple[str, Any]]]:
        now = self.certificates
        credentials = grpc.ssl_channel_credentials(now.authority, now.key, now.chain)
        return credentials, [*options, ("grpc.ssl_target_name_override", now.name)]

    def server_credentials(self) -> grpc.ServerCredentials:
        """Demands certificates of callers; each handshake is made with what is in force then."""
        shown = self.certificates

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            now = self.certificates
            if now is shown:
                return None
            shown = now
            return _server_side(now)

        return grpc.dynamic_ssl_server_credentials(
            _server_side(shown),
            renewed,  # type: ignore[arg-type]  # None, for nothing new, is in its documentation
            require_client_authentication=True,
        )


def _server_side(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(certificates.pairs, certificates.authority)


class NameInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Refuses callers whose certificate is not of this deployment, whoever vouches for it.

    Args:
        tls: knows its name.
    """

    def __init__(self, tls: MutualTls) -> None:
        self._tls = tls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler of the call, behind a look at the caller's certificate."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        coders = handler.request_deserializer, handler.response_serializer
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(handler.stream_stream), *coders
            )
        return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary), *coders)

    def _unary(self, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[..., Any]:
        async def unary(request: object, context: Any) -> Any:
            await self._check(context)
            return await behaviour(request, context)

        return unary

    def _stream(self, behaviour: Callable[[Any, Any], Any]) -> Callable[..., AsyncIterator[Any]]:
        async def stream(requests: object, context: Any) -> AsyncIterator[Any]:
            await self._check(context)
            async with aclosing(behaviour(requests, context)) as responses:
                async for response in responses:
                    yield response

        return stream

    async def _check(self, context: Any) -> None:
        names = context.auth_context().get("x509_subject_alternative_name", ())
        if self._tls.certificates.name.encode() not in names:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, _STRANGER)
