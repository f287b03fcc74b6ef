"""What the value of a flag may be: readers, for what no type says, and the types of flags, which
are made of them. Errors are for operators to read."""

import ipaddress
import re
import socket
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from twinflow.cluster.dispatch.admission import AdmissionLimits
from twinflow.cluster.quantities import count, memory, whole
from twinflow.parallel.latent.transforms.name import SUFFIX, TransformName
from twinflow.protos.errors import ConfigError
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.drafters.registry import check_drafter

# The address of no cluster: Ray is started for this deployment, on this machine.
LOCAL = "local"
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def default_of(owner: type[EngineConfig | AdmissionLimits], name: str) -> int:
    """The default of a number where it belongs; the flag for it has no other."""
    default = owner.__dataclass_fields__[name].default
    if not isinstance(default, int):
        raise TypeError(f"{owner.__name__}.{name} has no default number")
    return default


def one_or_more(value: object) -> object:
    """A single text stands for a list of one."""
    return (value,) if isinstance(value, str) else value


def power_of_two(value: int) -> int:
    """A power of two."""
    if value & (value - 1):
        raise ValueError("must be a power of two")
    return value


def lower(value: object) -> object:
    """A text in lower case."""
    return value.lower() if isinstance(value, str) else value


def host_name(value: str) -> str:
    """An address or a host name."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        if not _HOST_NAME.fullmatch(value):
            raise ValueError("must be an address or a host name, without a port") from None
    return value


def is_wildcard(host: str) -> bool:
    """Whether binding to `host` accepts connections on every interface of the machine."""
    try:
        return not any(socket.inet_aton(host))  # also reads the short forms of 0.0.0.0
    except OSError:
        pass
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return address.is_unspecified or bool(
        address.ipv4_mapped and address.ipv4_mapped.is_unspecified
    )


def ray_address(value: str) -> str:
    """Which Ray cluster: a new one, the one that is found, or that of a head."""
    host, _, port = value.rpartition(":")
    known = value in (LOCAL, "auto") or (
        _HOST_NAME.fullmatch(host) and port.isdecimal() and 0 < int(port) < 1 << 16
    )
    if not known:
        raise ValueError("must be local, auto, or the host and port of a Ray head: 10.0.0.1:6379")
    return value


def printable_key(value: SecretStr) -> SecretStr:
    """An API key that a header can carry."""
    key = value.get_secret_value()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("a key is printable ASCII without spaces, and not empty")
    return value


def speculation(value: object) -> object:
    """How next tokens are guessed, from its JSON."""
    if value is None or isinstance(value, SpeculativeConfig):
        return value
    config = SpeculativeConfig.parse(value)
    check_drafter(config)
    return config


def transform_name(value: str) -> str:
    """A basis of latents, or the file of one."""
    if not value.endswith(SUFFIX):
        try:
            TransformName.parse(value)
        except ConfigError as error:
            raise ValueError(error.message) from None
    return value


def model_name(value: str) -> str:
    """A name of a model."""
    if not 0 < len(value) <= 256 or not value.isprintable():
        raise ValueError("a name has 1 to 256 printable characters")
    return value


Whole = Annotated[int, BeforeValidator(whole)]
Count = Annotated[int, BeforeValidator(count), Field(ge=1, le=2**40)]
Memory = Annotated[int, BeforeValidator(memory), Field(ge=1)]
PoolSize = Annotated[Whole, Field(ge=0, le=1024)]
Ranks = Annotated[Whole, Field(ge=1, le=64)]
Port = Annotated[Whole, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(gt=0, le=86400_000, allow_inf_nan=False)]
Slack = Annotated[float, Field(ge=1, le=1000, allow_inf_nan=False)]
SchedulerName = Literal["auto", "chunked", "layered", "laps"]
OrderName = Literal["fcfs", "spf"]
AdmissionName = Literal["aggressive", "conservative", "past-future"]
Names = Annotated[
    tuple[Annotated[str, AfterValidator(model_name)], ...], BeforeValidator(one_or_more)
]
Keys = Annotated[
    tuple[Annotated[SecretStr, AfterValidator(printable_key)], ...], BeforeValidator(one_or_more)
]
