"""Row B7 of the catalogue: who has no certificate that counts does not get in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import trustme
from tests.support.fake_backend import FakeBackend
from tests.support.grpc_doors import RunningDoor, call, failing, generate_request, running_door

SERVER_NAME = "gateway.test"
PATIENCE_S = 20.0


class Authorities:
    """Who signs: the deployment's authority, and a stranger's of the same name."""

    def __init__(self) -> None:
        self.ours = trustme.CA(organization_name="ours")
        self.theirs = trustme.CA(organization_name="ours")

    def server(self, name: str = SERVER_NAME) -> grpc.ServerCredentials:
        """Demands a client certificate of ours."""
        roots = self.ours.cert_pem.bytes()
        return grpc.ssl_server_credentials([identity(self.ours.issue_cert(name))], roots, True)

    def stranger(self, kind: str) -> trustme.LeafCert | None:
        """The certificate of somebody who must not get in."""
        now, day = datetime.now(UTC), timedelta(days=1)
        match kind:
            case "another authority":
                return self.theirs.issue_cert("client.test")
            case "expired":
                return self.ours.issue_cert("client.test", not_after=now - day)
            case "not yet valid":
                return self.ours.issue_cert("client.test", not_before=now + day)
            case _:
                return None


STRANGERS = ("no certificate", "another authority", "expired", "not yet valid")


def identity(certificate: trustme.LeafCert) -> tuple[bytes, bytes]:
    """Private key and certificate."""
    return certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes()


@pytest.fixture(scope="module")
def authorities() -> Authorities:
    return Authorities()


@asynccontextmanager
async def channel_to(
    door: RunningDoor, roots: trustme.CA, client: trustme.LeafCert | None
) -> AsyncIterator[grpc.aio.Channel]:
    """A client that trusts `roots` and shows its certificate."""
    key, chain = identity(client) if client is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(roots.cert_pem.bytes(), key, chain)
    options = [
        ("grpc.ssl_target_name_override", SERVER_NAME),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.secure_channel(door.target, credentials, options) as channel:
        yield channel


async def test_b7_a_certificate_of_ours_is_let_in(authorities: Authorities) -> None:
    client = authorities.ours.issue_cert("client.test")
    async with (
        running_door(credentials=authorities.server()) as door,
        channel_to(door, authorities.ours, client) as channel,
    ):
        assert await call(channel, "Generate", generate_request())


@pytest.mark.parametrize("kind", STRANGERS)
async def test_b7_other_clients_are_refused_in_the_handshake(
    authorities: Authorities, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    client = authorities.stranger(kind)
    backend = FakeBackend()
    async with running_door(backend, credentials=authorities.server()) as door:
        async with channel_to(door, authorities.ours, client) as channel:
            with failing() as failure:
                await call(channel, "Generate", generate_request())
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert not door.door.calls
        friend = authorities.ours.issue_cert("client.test")
        async with channel_to(door, authorities.ours, friend) as channel:
            assert await call(channel, "Generate", generate_request())
    assert len(backend.specs) == 1
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("wrong", ["name", "authority"])
async def test_b7_a_client_does_not_talk_to_another_server(
    authorities: Authorities, wrong: str
) -> None:
    name = "elsewhere.test" if wrong == "name" else SERVER_NAME
    roots = authorities.theirs if wrong == "authority" else authorities.ours
    client = authorities.ours.issue_cert("client.test")
    backend = FakeBackend()
    async with (
        running_door(backend, credentials=authorities.server(name)) as door,
        channel_to(door, roots, client) as channel,
    ):
        with failing() as failure:
            await call(channel, "Generate", generate_request())
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert backend.specs == []


async def test_b14_clear_text_to_a_tls_port_is_hung_up_on(authorities: Authorities) -> None:
    async with running_door(credentials=authorities.server()) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
        writer.close()
        assert b"HTTP" not in answer
        client = authorities.ours.issue_cert("client.test")
        async with channel_to(door, authorities.ours, client) as channel:
            assert await call(channel, "Generate", generate_request())
