"""Both ends of a connection prove that they know the deployment's secret, without telling it.

Each sends a number that was never used before; the proof is a keyed hash (HMAC-SHA256) of both and
of who speaks, so that no proof can be used again, elsewhere or in the other direction.
"""

import hmac
import secrets
from typing import TypeVar

from twinflow.parallel.links.deadline import Deadline
from twinflow.workers.ranks.connection import Connection, ConnectionBroken
from twinflow.workers.ranks.frames import (
    PROTOCOL_VERSION,
    Admitted,
    Answer,
    Challenge,
    Frame,
    Refused,
)

_NONCE_BYTES = 32

F = TypeVar("F", bound=Frame)


class HandshakeRefused(Exception):
    """One end does not want the other; the message says why."""


def admit(connection: Connection, token: str, deadline: Deadline) -> None:
    """The leader's half.

    Raises:
        HandshakeRefused: the other end does not know the secret; it was told so.
        ConnectionBroken: it has gone, was too slow, or talks something else.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    connection.send(Challenge(PROTOCOL_VERSION, nonce))
    answer = expect(connection, Answer, deadline)
    if not hmac.compare_digest(answer.proof, _proof(token, "follower", nonce, answer.nonce)):
        refuse(connection, "wrong deployment token")
    connection.send(Admitted(_proof(token, "leader", nonce, answer.nonce)))
    connection.admit()


def enter(connection: Connection, token: str, deadline: Deadline) -> None:
    """The follower's half.

    Raises:
        HandshakeRefused: one end does not know the secret, or speaks another version.
        ConnectionBroken: the other end has gone, was too slow, or talks something else.
    """
    challenge = expect(connection, Challenge, deadline)
    if challenge.version != PROTOCOL_VERSION:
        raise HandshakeRefused(
            f"it speaks version {challenge.version} of the ranks' protocol, this rank "
            f"{PROTOCOL_VERSION}"
        )
    nonce = secrets.token_bytes(_NONCE_BYTES)
    connection.send(Answer(nonce, _proof(token, "follower", challenge.nonce, nonce)))
    admitted = expect(connection, Admitted, deadline)
    expected = _proof(token, "leader", challenge.nonce, nonce)
    if not hmac.compare_digest(admitted.proof, expected):
        raise HandshakeRefused("it does not know the deployment token")
    connection.admit()


def refuse(connection: Connection, reason: str) -> None:
    """Tell the other end that it is not wanted.

    Raises:
        HandshakeRefused: always.
    """
    try:
        connection.send(Refused(reason))
    except ConnectionBroken:
        raise HandshakeRefused(reason) from None
    raise HandshakeRefused(reason)


def expect(connection: Connection, kind: type[F], deadline: Deadline) -> F:
    """The next frame, which must be of a kind.

    Raises:
        HandshakeRefused: the other end refuses this one.
        ConnectionBroken: the other end has gone, was too slow, or says something else.
    """
    frame = connection.receive(deadline.remaining())
    if isinstance(frame, kind):
        return frame
    if frame is None:
        name = kind.__name__.lower()
        raise ConnectionBroken(f"sent no {name} within {deadline.budget_s:g} s")
    if isinstance(frame, Refused):
        raise HandshakeRefused(frame.reason)
    raise ConnectionBroken(f"sent {type(frame).__name__.lower()} out of turn")


def _proof(token: str, who: str, leader_nonce: bytes, follower_nonce: bytes) -> bytes:
    parts = b"".join((who.encode(), b"\0", leader_nonce, follower_nonce))
    return hmac.digest(token.encode(), parts, "sha256")
