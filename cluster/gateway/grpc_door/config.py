"""What the gRPC door is told, and what of it gRPC's core enforces.

Limits are defaults for an open network. Nothing here opens a socket.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import grpc

from twinflow.protos.errors import ConfigError

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcConfig:
    """The configuration of a `GrpcDoor`.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        reflection: whether clients may list and describe the services.
        credentials: TLS, or mTLS; None listens in clear text.
        max_message_bytes: largest request, after decompression.
        max_metadata_bytes: largest metadata of a request.
        max_concurrent_streams: calls that one connection may have open. gRPC clients queue more,
            but one that stays at the limit is refused some with UNAVAILABLE, because gRPC counts
            a call until its last trace is gone. That is its defence against streams opened only
            to be reset (CVE-2023-44487), so the limit is above what the queues hold.
        max_calls: calls of all connections together, health checks apart; more are refused.
        max_health_checks: health checks of all connections together; more are refused.
        receive_timeout_s: from the start of a call until its request is complete.
        write_timeout_s: how long a reader may refuse the next message of a stream.
        max_deadline_s: deadline of calls without one, and of those with a later one.
        min_ping_interval_s: a client that pings more often is cut off.
        keepalive_s: silence after which a connection is probed.
        keepalive_timeout_s: how long the probe may stay unanswered.
        max_connection_idle_s: connections without calls are closed after this.
        max_connection_age_s: older connections are asked to reconnect, so that load spreads.
        readiness_interval_s: how often the health service asks the backend.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    reflection: bool = True
    credentials: grpc.ServerCredentials | None = None
    max_message_bytes: int = 4 * MIB
    max_metadata_bytes: int = 16 * 1024
    max_concurrent_streams: int = 2048
    max_calls: int = 4096
    max_health_checks: int = 1024
    receive_timeout_s: float = 10.0
    write_timeout_s: float = 30.0
    max_deadline_s: float = 600.0
    min_ping_interval_s: float = 10.0
    keepalive_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    max_connection_idle_s: float = 600.0
    max_connection_age_s: float = 3600.0
    readiness_interval_s: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"The gRPC port must be between 0 and 65535, not {self.port}.")
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name != "port" and type(value) in (int, float) and not value > 0:
                raise ConfigError(f"{name} of the gRPC door must be above 0, not {value}.")

    @property
    def address(self) -> str:
        """Where to listen, as gRPC writes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def core_options(self) -> Iterable[tuple[str, int]]:
        """Channel arguments of the server."""
        return (
            # Another process on the same port is an error, not a lottery.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # Above the soft limit the core refuses at random, so both limits are one.
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.max_metadata_bytes),
            ("grpc.max_concurrent_streams", self.max_concurrent_streams),
            # Calls that wait to be looked at: more than several such connections can have open,
            # because beyond this the core refuses the calls of the others too.
            ("grpc.server.max_pending_requests", 8 * self.max_concurrent_streams),
            ("grpc.server.max_pending_requests_hard_limit", 16 * self.max_concurrent_streams),
            ("grpc.server_handshake_timeout_ms", _ms(self.receive_timeout_s)),
            ("grpc.keepalive_time_ms", _ms(self.keepalive_s)),
            ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout_s)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", _ms(self.min_ping_interval_s)),
            ("grpc.http2.max_ping_strikes", 2),
            ("grpc.max_connection_idle_ms", _ms(self.max_connection_idle_s)),
            ("grpc.max_connection_age_ms", _ms(self.max_connection_age_s)),
            # Whatever runs on an aged connection may run to its deadline.
            ("grpc.max_connection_age_grace_ms", _ms(self.max_deadline_s)),
        )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
