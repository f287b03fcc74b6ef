"""Certificates between processes: who gets in, what is refused at the start, how sets change."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from structlog.testing import capture_logs
from tests.support.certificates import NAME, Authority, put

from twinflow.protos.errors import ConfigError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.workers.mutual_tls import MutualTls
from twinflow.workers.rpc import (
    call_metadata,
    create_server,
    listen_on,
    open_blocking_channel,
    open_channel,
)

TOKEN = "secret of the tests"
TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def ours() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def theirs() -> Authority:
    return Authority()


class Answering(rpc.WorkerServicer):
    """Answers a call and a stream."""

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:
        return pb.DescribeResponse(worker_id="mixed-0")

    async def Attach(self, requests: Any, context: Any) -> AsyncIterator[pb.AttachResponse]:
        yield pb.AttachResponse()
        async for _ in requests:
            yield pb.AttachResponse()


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[str]:
    """A server with these certificates; yields its address."""
    tls = MutualTls(directory)
    server = create_server(TOKEN, tls)
    rpc.add_WorkerServicer_to_server(Answering(), server)
    address = listen_on(server, "127.0.0.1", "the test", tls)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


async def describe(channel: grpc.aio.Channel) -> str:
    """One call."""
    answer = await rpc.WorkerStub(channel).Describe(
        pb.DescribeRequest(), metadata=call_metadata(TOKEN), timeout=TIMEOUT_S
    )
    return str(answer.worker_id)


async def attach(channel: grpc.aio.Channel) -> int:
    """One stream; returns how many messages came back for two."""
    call = rpc.WorkerStub(channel).Attach(metadata=call_metadata(TOKEN), timeout=TIMEOUT_S)
    await call.write(pb.AttachRequest())
    await call.write(pb.AttachRequest())
    await call.done_writing()
    return len([message async for message in call])


async def listen(channel: grpc.aio.Channel) -> None:
    """One stream without a message of ours: where one meets a refusal, gRPC tells of that alone."""
    call = rpc.WorkerStub(channel).Attach(metadata=call_metadata(TOKEN), timeout=TIMEOUT_S)
    await call.read()


async def refusal(address: str, tls: MutualTls | None, call: Callable[..., Any] = describe) -> Any:
    """How a call fails."""
    async with open_channel(address, tls) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(channel)
    return refused.value


async def test_members_of_a_deployment_talk(ours: Authority, tmp_path: Path) -> None:
    server = ours.write(tmp_path / "server", NAME, "node-1.test")
    tls = MutualTls(ours.write(tmp_path / "client"))
    async with serving(server) as address, open_channel(address, tls) as channel:
        assert await describe(channel) == "mixed-0"
        assert await attach(channel) == 3


@pytest.mark.parametrize("kind", ["clear text", "another authority"])
async def test_strangers_are_refused_in_the_handshake(
    ours: Authority, theirs: Authority, tmp_path: Path, kind: str
) -> None:
    tls = None
    if kind == "another authority":
        directory = theirs.write(tmp_path / "client")
        put(directory / "ca.crt", theirs.ca.cert_pem.bytes() + ours.ca.cert_pem.bytes())
        tls = MutualTls(directory)
    async with serving(ours.write(tmp_path / "server")) as address:
        error = await refusal(address, tls)
    assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("call", [describe, listen])
async def test_a_certificate_for_something_else_is_refused(
    ours: Authority, tmp_path: Path, call: Callable[..., Any]
) -> None:
    """The authority may be the company's; its mail server is not a worker."""
    mail = MutualTls(ours.write(tmp_path / "client", "mail.test", f"{NAME}.mail.test"))
    key, chain = mail.certificates.pairs[0]
    credentials = grpc.ssl_channel_credentials(mail.certificates.authority, key, chain)
    options = [("grpc.ssl_target_name_override", NAME)]
    async with (
        serving(ours.write(tmp_path / "server")) as address,
        grpc.aio.secure_channel(address, credentials, options) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(channel)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "name of this deployment" in (refused.value.details() or "")


@pytest.mark.parametrize("wrong", ["name", "authority"])
async def test_nobody_talks_to_a_server_of_another_deployment(
    ours: Authority, theirs: Authority, tmp_path: Path, wrong: str
) -> None:
    tls = MutualTls(ours.write(tmp_path / "client"))
    server = tmp_path / "server"
    if wrong == "name":
        ours.write(server, "mail.test")
    else:  # it would let our client in
        theirs.write(server)
        put(server / "ca.crt", theirs.ca.cert_pem.bytes() + ours.ca.cert_pem.bytes())
    async with serving(server) as address:
        error = await refusal(address, tls)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "ertificate" in error.details() or "Hostname" in error.details()


async def test_renewed_certificates_count_from_the_next_handshake_on(
    ours: Authority, theirs: Authority, tmp_path: Path
) -> None:
    server = ours.write(tmp_path / "server")
    tls, before = (MutualTls(ours.write(tmp_path / name)) for name in ("client", "before"))
    async with serving(server) as address, open_channel(address, tls) as old:
        assert await describe(old) == "mixed-0"
        # Nobody trusts the authority of before any more, so that both sides must have noticed.
        theirs.write(server)
        theirs.write(tmp_path / "client")
        async with open_channel(address, tls) as new:
            assert await describe(new) == "mixed-0"
        assert await describe(old) == "mixed-0"  # over the connection that exists
        error = await refusal(address, before)
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_without_an_event_loop(ours: Authority, tmp_path: Path) -> None:
    tls = MutualTls(ours.write(tmp_path / "client"))
    async with serving(ours.write(tmp_path / "server")) as address:
        with open_blocking_channel(address, tls) as channel:
            waiting = grpc.channel_ready_future(channel)
            await asyncio.to_thread(waiting.result, TIMEOUT_S)


def test_a_set_stays_in_force_until_the_next_one_is_whole(
    ours: Authority, theirs: Authority, tmp_path: Path
) -> None:
    directory, other = ours.write(tmp_path / "ours"), theirs.write(tmp_path / "theirs")
    tls = MutualTls(directory)
    first = tls.certificates
    assert tls.certificates is first
    with capture_logs() as logs:
        for name in ("tls.key", "tls.crt"):  # neither fits what is there
            put(directory / name, (other / name).read_bytes())
            assert tls.certificates is first
            assert tls.certificates is first
        (directory / "ca.crt").unlink()
        assert tls.certificates is first
        put(directory / "ca.crt", (other / "ca.crt").read_bytes())
        assert tls.certificates.chain == (other / "tls.crt").read_bytes()
    said = [(entry["log_level"], entry["event"]) for entry in logs]
    assert said == [("error", "keeps the last certificates")] * 2 + [("info", "new certificates")]
    assert "is not the key of" in logs[0]["problem"]
    assert "PRIVATE KEY" not in repr(tls.certificates)


def _with_password(path: Path) -> None:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    put(
        path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"sesame"),
        ),
    )


def _write_garbage(path: Path) -> None:
    put(path, b"-----BEGIN GARBAGE-----\n")


def _with_ed25519(directory: Path, authority: Authority) -> None:
    """What Python's TLS library takes, and the one within gRPC does not."""
    key = ed25519.Ed25519PrivateKey.generate()
    signer = serialization.load_pem_private_key(authority.ca.private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(authority.ca.cert_pem.bytes())
    now, day = datetime.now(UTC), timedelta(days=1)
    names = x509.SubjectAlternativeName([x509.DNSName(NAME)])
    certificate = (
        x509.CertificateBuilder(issuer.subject, x509.Name([]), key.public_key(), 1)
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(names, critical=True)
        .sign(signer, hashes.SHA256())
    )
    put(directory / "ca.crt", authority.ca.cert_pem.bytes())
    put(directory / "tls.crt", certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    put(
        directory / "tls.key",
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain),
    )


WRONG: dict[str, tuple[Callable[[Path, Authority], object], str]] = {
    "no authority": (lambda at, _: (at / "ca.crt").unlink(), "ca.crt: cannot be read (No such"),
    "no certificate": (lambda at, _: (at / "tls.crt").unlink(), "tls.crt: cannot be read (No such"),
    "no key": (lambda at, _: (at / "tls.key").unlink(), "tls.key: cannot be read (No such"),
    "a garbled authority": (lambda at, _: _write_garbage(at / "ca.crt"), "ca.crt: is no certif"),
    "a garbled certificate": (
        lambda at, _: _write_garbage(at / "tls.crt"),
        "tls.crt: is no cert",
    ),
    "a garbled key": (lambda at, _: _write_garbage(at / "tls.key"), "tls.key: is no private key"),
    "a key with a password": (lambda at, _: _with_password(at / "tls.key"), "or needs a password"),
    "another key": (
        lambda at, other: put(at / "tls.key", other.ca.issue_cert(NAME).private_key_pem.bytes()),
        "tls.key: is not the key of",
    ),
    "another authority": (
        lambda at, other: put(at / "ca.crt", other.ca.cert_pem.bytes()),
        "does not prove itself to ca.crt",
    ),
    "an expired certificate": (
        lambda at, other: other.write_expired(at),
        "tls.crt: does not prove itself to ca.crt: certificate has expired",
    ),
    "a certificate of tomorrow": (
        lambda at, other: other.write_early(at),
        "tls.crt: does not prove itself to ca.crt: certificate is not yet valid",
    ),
    "a key that gRPC does not know": (_with_ed25519, "is for another kind of key than RSA"),
    "addresses only": (lambda at, other: other.write(at, "10.0.0.1"), "and it has none"),
    "a wildcard": (lambda at, other: other.write(at, "*.test"), "and it is a wildcard"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_named_at_the_start(
    ours: Authority, theirs: Authority, tmp_path: Path, kind: str
) -> None:
    spoil, complaint = WRONG[kind]
    directory = ours.write(tmp_path / "tls")
    spoil(directory, theirs)
    with pytest.raises(ConfigError) as refused:
        MutualTls(directory)
    assert str(refused.value).startswith(f"--internal-tls {directory}")
    assert complaint in str(refused.value)
