"""How rank 0 gathers the other ranks of its worker, and keeps everybody else out.

Whoever connects is greeted, one after the other: has it the deployment's secret, is it a rank of
this life of this worker, and does it mean the same KV blocks? Strangers are refused and told why,
and the right ones waited for; a rank that is right and does not fit ends the start.
"""

import structlog

from twinflow.parallel.links.deadline import Deadline
from twinflow.protos.errors import ConfigError, RankLost
from twinflow.workers.ranks.address import listen, unlink
from twinflow.workers.ranks.config import TeamConfig
from twinflow.workers.ranks.connection import Connection, ConnectionBroken
from twinflow.workers.ranks.frames import Hello
from twinflow.workers.ranks.handshake import HandshakeRefused, admit, expect, refuse

# A stranger who connects and says nothing keeps the ranks waiting for so long.
_GREETING_S = 2.0
_ACCEPT_S = 0.2


def gather(config: TeamConfig, own: Hello) -> tuple[dict[int, Connection], int]:
    """Wait for every other rank.

    Args:
        config: of rank 0.
        own: what rank 0 would say of itself.

    Returns:
        A connection to each rank, and the smallest number of blocks that any has memory for.

    Raises:
        ConfigError: the address cannot be had, or a rank means another layout.
        RankLost: a rank did not come in time.
    """
    deadline = Deadline.after(config.meet_s)
    connections: dict[int, Connection] = {}
    agreed = own.num_blocks
    listener = listen(config.address)
    listener.settimeout(_ACCEPT_S)
    try:
        while len(connections) < config.size - 1:
            if deadline.expired:
                missing = [r for r in range(1, config.size) if r not in connections]
                raise RankLost(
                    f"{config.describe(missing[0])} did not come within {config.meet_s:g} s"
                )
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            connection = Connection(sock, config.silence_s)
            hello = _greet(connection, config, own, connections)
            if hello is not None:
                connections[hello.rank] = connection
                agreed = min(agreed, hello.num_blocks)
    except BaseException:  # whatever it is, the ranks that came are let go
        for connection in connections.values():
            connection.close()
        raise
    finally:
        listener.close()
        unlink(config.address)
    return connections, agreed


def _greet(
    connection: Connection, config: TeamConfig, own: Hello, known: dict[int, Connection]
) -> Hello | None:
    """Let somebody in; None if it is nobody who is waited for.

    Raises:
        ConfigError: a rank of this worker cannot work with rank 0, whatever is waited for.
    """
    deadline = Deadline.after(_GREETING_S)
    misfit = ""
    try:
        admit(connection, config.token, deadline)
        hello = expect(connection, Hello, deadline)
        stranger = _mistake(hello, own, known)
        if not stranger and hello.layout == own.layout:
            return hello
        if not stranger:
            misfit = (
                f"{config.describe(hello.rank)} has the KV layout {hello.layout}, rank 0 "
                f"{own.layout}: give all ranks the same configuration"
            )
        refuse(connection, stranger or misfit)
    except (HandshakeRefused, ConnectionBroken) as error:
        connection.close()
        structlog.get_logger().warning("a connection was refused", reason=str(error))
    if misfit:
        raise ConfigError(misfit)
    return None


def _mistake(hello: Hello, own: Hello, known: dict[int, Connection]) -> str:
    """Why a caller is not one that is waited for; empty if it is."""
    if (hello.worker_id, hello.epoch) != (own.worker_id, own.epoch):
        return (
            f"this is worker {own.worker_id} (epoch {own.epoch}), not {hello.worker_id} "
            f"(epoch {hello.epoch})"
        )
    if hello.size != own.size or not 1 <= hello.rank < own.size:
        return f"there is no rank {hello.rank} of {hello.size}, only 1..{own.size - 1}"
    if hello.rank in known:
        return f"rank {hello.rank} is here already"
    return ""
