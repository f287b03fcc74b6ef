"""Where rank 0 listens for the other ranks: a Unix socket, since ranks share a machine.

An address is a path, or `@` and a name in Linux' abstract namespace, which leaves no file behind.
Anybody on the machine may connect: that a connection is a rank's is proved by the handshake.
"""

import secrets
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from twinflow.parallel.links.deadline import Deadline
from twinflow.protos.errors import ConfigError, RankLost

_RETRY_S = 0.05
_BACKLOG = 16


def new_address(worker_id: str) -> str:
    """An address that nobody else has, for one life of a worker."""
    name = f"twinflow-{worker_id}-{secrets.token_hex(8)}"
    if sys.platform == "linux":
        return f"@{name}"
    return str(Path(tempfile.gettempdir()) / f"{name}.sock")


def listen(address: str) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address cannot be had.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(_name(address))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"leader_address {address}: cannot listen there: {error}") from error
    return listener


def unlink(address: str) -> None:
    """Remove what `listen` left behind, if anything."""
    if not address.startswith("@"):
        with suppress(FileNotFoundError):
            Path(address).unlink()


def connect(address: str, deadline: Deadline) -> socket.socket:
    """A connection to who listens at an address, which may begin to do so later.

    Raises:
        RankLost: nobody did before the deadline.
    """
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(max(_RETRY_S, deadline.remaining()))
        try:
            connection.connect(_name(address))
        except OSError as error:
            connection.close()
            if deadline.expired:
                raise RankLost(
                    f"rank 0 was not to be reached at {address} within {deadline.budget_s:g} s: "
                    f"{error}"
                ) from error
            time.sleep(_RETRY_S)
        else:
            return connection


def _name(address: str) -> str:
    return f"\0{address[1:]}" if address.startswith("@") else address
