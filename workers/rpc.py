"""How internal gRPC channels and servers are set up: limits, liveness, the shared secret, TLS.

Gateways, workers and the controller speak over these and nothing else. The secret is made by the
launcher for each deployment; without it every call is refused. With `MutualTls` both ends also
prove themselves with certificates, and nobody on the way reads the secret or anything else.
"""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc

from twinflow.protos.errors import ConfigError, ServerError, TwinflowError, subclasses_by_code
from twinflow.workers.mutual_tls import MutualTls, NameInterceptor

# Both ends send an HTTP/2 ping after so long without a word from the other. A frozen peer answers
# none: every call with it fails when the ping has not come back in time.
KEEPALIVE_INTERVAL_S = 2.0
KEEPALIVE_TIMEOUT_S = 3.0
HANDSHAKE_TIMEOUT_S = 10.0
# Both ends of an internal call come from one release; this tells them apart.
PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_TOKEN_KEY = "authorization"

_OPTIONS = [
    ("grpc.keepalive_time_ms", int(KEEPALIVE_INTERVAL_S * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
    # The ping itself has a limit of its own, a minute unless told otherwise.
    ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]
_CHANNEL_OPTIONS = [
    *_OPTIONS,
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
    # Each worker is one address; sharing subchannels would hide that a peer was replaced.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Also how long one attempt may take: a frozen peer accepts and then says nothing.
    ("grpc.min_reconnect_backoff_ms", 2000),
]
_SERVER_OPTIONS = [
    *_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", int(KEEPALIVE_INTERVAL_S * 500)),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
    # Whoever connects and says nothing is hung up on.
    ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_TIMEOUT_S * 1000)),
]


def open_channel(address: str, tls: MutualTls | None = None) -> grpc.aio.Channel:
    """A channel to a worker at `host:port`; it keeps the certificates that it was opened with."""
    if tls is not None:
        return tls.open_channel(address, _CHANNEL_OPTIONS)
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


def open_blocking_channel(address: str, tls: MutualTls | None = None) -> grpc.Channel:
    """The same for whoever has no event loop."""
    if tls is not None:
        return tls.open_blocking_channel(address, _CHANNEL_OPTIONS)
    return grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)


def call_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that every internal call carries."""
    return ((_TOKEN_KEY, f"Bearer {token}"),)


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Refuses calls that do not carry the deployment's secret."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Let the call through, or answer UNAUTHENTICATED whatever its shape."""
        metadata = dict(handler_call_details.invocation_metadata or ())
        offered = metadata.get(_TOKEN_KEY, "")
        offered = offered if isinstance(offered, bytes) else offered.encode()
        handler = await continuation(handler_call_details)
        if handler is None or hmac.compare_digest(offered, self._expected):
            return handler
        return _refuse_like(handler)


def _refuse_like(handler: Any) -> Any:
    """A handler with the shape of another one that refuses every call."""

    async def unary(_request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong or missing deployment token")

    async def stream(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong or missing deployment token")
        yield None

    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(stream)
    return grpc.unary_unary_rpc_method_handler(unary)


async def abort_call(
    context: "grpc.aio.ServicerContext[Any, Any]", error: TwinflowError
) -> NoReturn:
    """End a call with an error, which `error_of_call` turns back at the other end."""
    await context.abort(grpc.StatusCode[error.grpc_status], f"{error.code}: {error.message}")
    raise error  # not reached: `abort` raises


def error_of_call(problem: grpc.aio.AioRpcError) -> TwinflowError:
    """What the peer ended a call with, or what broke it."""
    details = problem.details() or ""
    code, _, message = details.partition(": ")
    known = subclasses_by_code().get(code)
    if known is not None:
        return known(message)
    return ServerError(f"{problem.code().name.lower()}: {details}")


def listen_on(server: grpc.aio.Server, host: str, who: str, tls: MutualTls | None = None) -> str:
    """Take a port for the server of `who`; returns the address.

    Raises:
        ConfigError: there is none to be had.
    """
    address = f"{host}:0"
    try:
        port = (
            server.add_insecure_port(address)
            if tls is None
            else server.add_secure_port(address, tls.server_credentials())
        )
    except RuntimeError as error:
        raise ConfigError(f"{who} cannot listen on {host}: {error}") from error
    return f"{host}:{port}"


def create_server(token: str, tls: MutualTls | None = None) -> grpc.aio.Server:
    """A server for `worker.proto` that checks the secret, and the caller's certificate with TLS."""
    checks: list[grpc.aio.ServerInterceptor] = [TokenInterceptor(token)]
    if tls is not None:
        checks.append(NameInterceptor(tls))
    return grpc.aio.server(interceptors=checks, options=_SERVER_OPTIONS)
