"""Both ends prove that they know the secret, or hear why they are not wanted."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from twinflow.parallel.links.deadline import Deadline
from twinflow.workers.ranks.connection import Connection, ConnectionBroken
from twinflow.workers.ranks.frames import PROTOCOL_VERSION, Admitted, Answer, Beat, Challenge, Order
from twinflow.workers.ranks.handshake import HandshakeRefused, admit, enter, expect

Half = Callable[[Connection], object]
Outcome = BaseException | None


def meet(leader: Half, follower: Half) -> tuple[Outcome, Outcome]:
    """Both halves at the same time; what each raised."""
    ends = [Connection(sock, 5.0) for sock in socket.socketpair()]
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(half, end) for half, end in zip((leader, follower), ends, strict=True)
        ]
        outcomes = [future.exception(10.0) for future in futures]
    for end in ends:
        end.close()
    return outcomes[0], outcomes[1]


def soon() -> Deadline:
    return Deadline.after(5.0)


def admitting(token: str) -> Half:
    return lambda end: admit(end, token, soon())


def entering(token: str) -> Half:
    return lambda end: enter(end, token, soon())


def test_who_knows_the_secret_is_let_in_and_may_send_long_frames() -> None:
    def leader(end: Connection) -> None:
        admit(end, "secret", soon())
        assert expect(end, Order, soon()).body == bytes(100_000)

    def follower(end: Connection) -> None:
        enter(end, "secret", soon())
        end.send(Order("kind", bytes(100_000)))

    assert meet(leader, follower) == (None, None)


@pytest.mark.parametrize("token", ["", "other", "secret "])
def test_who_does_not_know_it_is_refused_and_told_why(token: str) -> None:
    for outcome in meet(admitting("secret"), entering(token)):
        assert isinstance(outcome, HandshakeRefused)
        assert str(outcome) == "wrong deployment token"


def test_a_leader_has_to_know_it_too() -> None:
    def impostor(end: Connection) -> None:
        end.send(Challenge(PROTOCOL_VERSION, bytes(32)))
        answer = expect(end, Answer, soon())
        end.send(Admitted(answer.proof))  # the only proof that it has seen

    _, outcome = meet(impostor, entering("secret"))
    assert isinstance(outcome, HandshakeRefused)
    assert str(outcome) == "it does not know the deployment token"


def test_a_proof_is_of_no_use_a_second_time() -> None:
    seen: list[Answer] = []

    def eavesdropper(end: Connection) -> None:
        end.send(Challenge(PROTOCOL_VERSION, b"a" * 32))
        seen.append(expect(end, Answer, soon()))
        end.close()

    def replay(end: Connection) -> None:
        expect(end, Challenge, soon())
        end.send(seen[0])
        expect(end, Admitted, soon())

    meet(eavesdropper, entering("secret"))
    for outcome in meet(admitting("secret"), replay):
        assert isinstance(outcome, HandshakeRefused)


def test_another_version_is_refused() -> None:
    _, outcome = meet(
        lambda end: end.send(Challenge(PROTOCOL_VERSION + 1, b"")), entering("secret")
    )
    ours, theirs = PROTOCOL_VERSION, PROTOCOL_VERSION + 1
    assert str(outcome) == f"it speaks version {theirs} of the ranks' protocol, this rank {ours}"


def test_who_is_silent_or_speaks_out_of_turn_is_not_waited_for() -> None:
    outcome, _ = meet(lambda end: admit(end, "secret", Deadline.after(0.2)), lambda end: None)
    assert isinstance(outcome, ConnectionBroken)
    assert str(outcome) == "sent no answer within 0.2 s"
    outcome, _ = meet(admitting("secret"), lambda end: end.send(Beat()))
    assert str(outcome) == "sent beat out of turn"
