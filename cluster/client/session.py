"""What the blocking and the awaiting client know about a server, and share.

No call is made here: this is where they go, what they carry and what their failures mean.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

import twinflow
from twinflow.cluster import rpc_status
from twinflow.protos.errors import (
    ConfigError,
    DeadlineExceeded,
    ServerError,
    TwinflowError,
    Unavailable,
)
from twinflow.protos.twinflow.v1 import inference_pb2 as pb

# Answers grow with n, logprobs and top_logprobs; requests are bounded by the server.
MAX_ANSWER_BYTES = 256 * 1024 * 1024
KEEPALIVE_S = 30

SERVICE = pb.DESCRIPTOR.services_by_name["Inference"].full_name

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


@dataclass(frozen=True, slots=True)
class Rpc(Generic[RequestT, ResponseT]):
    """A method of a service.

    Attributes:
        path: `/package.Service/Method`.
        encode: bytes of a request.
        decode: response of bytes.
    """

    path: str
    encode: Callable[[RequestT], bytes]
    decode: Callable[[bytes], ResponseT]


@dataclass(frozen=True, slots=True)
class Ask(Generic[RequestT, ResponseT]):
    """A call to make.

    Attributes:
        rpc: the method.
        request: its message.
        timeout_s: deadline; None is the client's own.
    """

    rpc: Rpc[RequestT, ResponseT]
    request: RequestT
    timeout_s: float | None


def make_rpc(
    path: str, request: type[RequestT], response: type[ResponseT]
) -> Rpc[RequestT, ResponseT]:
    """A method from the types of its messages."""
    return Rpc(path, request.SerializeToString, response.FromString)


GENERATE = make_rpc(f"/{SERVICE}/Generate", pb.GenerateRequest, pb.GenerateResponse)
GENERATE_STREAM = make_rpc(
    f"/{SERVICE}/GenerateStream", pb.GenerateStreamRequest, pb.GenerateStreamResponse
)
TOKENIZE = make_rpc(f"/{SERVICE}/Tokenize", pb.TokenizeRequest, pb.TokenizeResponse)
DETOKENIZE = make_rpc(f"/{SERVICE}/Detokenize", pb.DetokenizeRequest, pb.DetokenizeResponse)
GET_MODEL_INFO = make_rpc(
    f"/{SERVICE}/GetModelInfo", pb.GetModelInfoRequest, pb.GetModelInfoResponse
)
HEALTH_CHECK = make_rpc(
    "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How to trust the server, and how to prove who calls; each is PEM, as in the file.

    Attributes:
        root_certificates: whom to trust; None trusts what the machine trusts.
        certificate_chain: the caller's certificate, for mTLS.
        private_key: its key.
    """

    root_certificates: bytes | None = None
    certificate_chain: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.certificate_chain is None) != (self.private_key is None):
            raise ConfigError("A client certificate needs certificate_chain and private_key.")

    def credentials(self) -> grpc.ChannelCredentials:
        """The credentials of a channel."""
        return grpc.ssl_channel_credentials(
            self.root_certificates, self.private_key, self.certificate_chain
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A server and how to talk to it.

    Attributes:
        target: `host:port`, or a gRPC name such as `dns:///host:port` or `unix:/path`.
        api_key: sent with every call; None for servers without keys.
        timeout_s: deadline of calls that do not have their own.
        connect_timeout_s: how long a connection may take.
        tls: None talks in clear text.
        insecure: allow clear text to another machine.
    """

    target: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 600.0
    connect_timeout_s: float = 10.0
    tls: Tls | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        for name in ("timeout_s", "connect_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}.")
        if self.tls is None and not self.insecure and not is_loopback(self.target):
            raise ConfigError(
                f"{self.target} is another machine and would be talked to in clear text: pass "
                "tls=Tls(...), or insecure=True if the network is trusted."
            )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        if self.api_key is None:
            return ()
        return (("authorization", f"Bearer {self.api_key}"),)

    @property
    def channel_options(self) -> tuple[tuple[str, int | str], ...]:
        """Arguments of the channel."""
        return (
            ("grpc.primary_user_agent", f"twinflow/{twinflow.__version__}"),
            ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
            # gRPC's name for the time that an attempt to connect gets.
            ("grpc.min_reconnect_backoff_ms", round(self.connect_timeout_s * 1000)),
            ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
        )

    def deadline_s(self, wanted: float | None) -> float:
        """The deadline of a call that wants this one, or none of its own."""
        return self.timeout_s if wanted is None else wanted

    @contextmanager
    def failures(self, rpc: Rpc[RequestT, ResponseT], timeout_s: float) -> Iterator[None]:
        """Raise failed calls as errors of ours.

        Raises:
            TwinflowError: what the server raised; `Unavailable` without a connection and
                `DeadlineExceeded` after `timeout_s`, both naming the server.
        """
        try:
            yield
        except grpc.RpcError as error:
            # Whoever raises RpcError is a Call too, blocking or awaiting.
            raise self._error(error, rpc.path, timeout_s) from None

    def _error(self, call: Any, path: str, timeout_s: float) -> TwinflowError:
        status, message = call.code(), call.details() or ""
        reported = rpc_status.from_trailers(message, call.trailing_metadata())
        if reported is not None:
            return reported
        if status is grpc.StatusCode.UNAVAILABLE:
            return Unavailable(f"{self.target} cannot be reached: {message}")
        if status is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"{self.target} did not finish {path} within {timeout_s:g} s.")
        if status is grpc.StatusCode.UNIMPLEMENTED:
            return ServerError(
                f"{self.target} does not serve {path}; is it the gRPC port of a twinflow gateway?"
            )
        return rpc_status.class_of(status)(f"{self.target} failed {path}: {message}")


def is_loopback(target: str) -> bool:
    """Whether a target stays on this machine, as far as its name tells."""
    scheme, address = _split_scheme(target)
    if scheme in ("unix", "unix-abstract"):
        return True
    bracketed = re.fullmatch(r"\[(.*)\](?::\d+)?", address)
    host = bracketed[1] if bracketed else address.rsplit(":", 1)[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split_scheme(target: str) -> tuple[str, str]:
    found = re.fullmatch(r"(dns|ipv4|ipv6|unix|unix-abstract):(?://[^/]*/)?(.*)", target)
    return (found[1], found[2]) if found else ("", target)
