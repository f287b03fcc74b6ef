"""A set of certificates in a directory: read, and tried on itself before anybody relies on it.

The files have the names that Kubernetes and cert-manager give:

    ca.crt    whom to trust
    tls.crt   the certificate that is shown to callers and to who is called, and its chain
    tls.key   its private key

A set is good if two ends that both use it would talk to each other: so they do, in memory. That
finds what is expired, signed by somebody else or made for another purpose, in both directions.
Whether a set has changed, and what is done then, is `twinflow.workers.mutual_tls`.
"""

import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from twinflow.protos.errors import ConfigError

Found = TypeVar("Found")

FLAG = "--internal-tls"
_AUTHORITY, _CHAIN, _KEY = "ca.crt", "tls.crt", "tls.key"
# The kinds of keys that the TLS library within gRPC takes, which is another one than `ssl`, as
# certificates write them: RSA, P-256, P-384.
_KEY_KINDS = tuple(
    bytes.fromhex(identifier)
    for identifier in ("06092a864886f70d010101", "06082a8648ce3d030107", "06052b81040022")
)
# A handshake with oneself takes three; more rounds mean that it does not end.
_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Certificates:
    """A set that belongs together; each is PEM, as in the file.

    Attributes:
        authority: whom to trust.
        chain: what is shown.
        key: its private key.
        name: what a peer's certificate must be for.
    """

    authority: bytes
    chain: bytes
    key: bytes = field(repr=False)
    name: str

    @property
    def pairs(self) -> list[tuple[bytes, bytes]]:
        """Key and certificate, as gRPC takes them."""
        return [(self.key, self.chain)]


def stamp_of(directory: Path) -> tuple[object, ...]:
    """What changes when one of the files does, be it written, replaced or linked anew.

    Raises:
        ConfigError: one cannot be looked at.
    """
    found = (_look(directory / name, Path.stat) for name in (_AUTHORITY, _CHAIN, _KEY))
    return tuple((file.st_ino, file.st_mtime_ns, file.st_size) for file in found)


def load(directory: Path) -> Certificates:
    """The files of a directory, tried.

    Raises:
        ConfigError: one is missing or wrong, or they do not fit each other; names it.
    """
    before = stamp_of(directory)
    authority, chain, key = (
        _look(directory / name, Path.read_bytes) for name in (_AUTHORITY, _CHAIN, _KEY)
    )
    name = _try(directory)
    if stamp_of(directory) != before:
        raise ConfigError(f"{FLAG} {directory}: the files change while they are read; try again")
    return Certificates(authority, chain, key, name)


def _look(path: Path, how: Callable[[Path], Found]) -> Found:
    try:
        return how(path)
    except OSError as error:
        raise ConfigError(f"{FLAG} {path}: cannot be read ({error.strerror})") from error


def _try(directory: Path) -> str:
    """Use the files as both ends of a connection; returns the name of the deployment."""
    chain = directory / _CHAIN
    contexts = (
        _context(kind, directory) for kind in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
    )
    try:
        client = _shake_hands(*contexts)
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"{FLAG} {chain}: does not prove itself to {_AUTHORITY}: {error.verify_message}"
        ) from error
    except ssl.SSLError as error:
        raise ConfigError(f"{FLAG} {chain}: cannot be used ({error.reason})") from error
    if not any(kind in (client.getpeercert(binary_form=True) or b"") for kind in _KEY_KINDS):
        raise ConfigError(f"{FLAG} {chain}: is for another kind of key than RSA, P-256 and P-384")
    shown: dict[str, Any] = client.getpeercert() or {}
    names = [name for kind, name in shown.get("subjectAltName", ()) if kind == "DNS"]
    if not names or "*" in names[0]:
        raise ConfigError(
            f"{FLAG} {chain}: its first DNS name is what all certificates of a deployment have in "
            f"common, and it {'is a wildcard' if names else 'has none'}"
        )
    return str(names[0])


def _context(protocol: int, directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # there is no name yet: it is what is looked for
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(directory / _AUTHORITY)
    except ssl.SSLError as error:
        raise ConfigError(f"{FLAG} {directory / _AUTHORITY}: is no certificate in PEM") from error
    chain, key = directory / _CHAIN, directory / _KEY
    try:
        # With a password, a key that needs one is an error and not a question on the terminal.
        context.load_cert_chain(chain, key, password="none")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{FLAG} {key}: is not the key of {chain}") from error
        if _is_certificate(chain):
            raise ConfigError(f"{FLAG} {key}: is no private key in PEM, or needs a password") from (
                error
            )
        raise ConfigError(f"{FLAG} {chain}: is no certificate in PEM") from error
    return context


def _is_certificate(path: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Connect two ends in memory; returns the calling one."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    calling = client.wrap_bio(to_client, to_server)
    left = [calling, server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(_ROUNDS):
        for end in tuple(left):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
                left.remove(end)
    return calling
