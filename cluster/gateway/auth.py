"""API keys and admin tokens, for the front doors.

Every key is compared on every check, in constant time and by digest, so that neither the answer's
time nor a log line tells anything about a key. Which routes need a key is the front doors' matter.
"""

import hashlib
import hmac
from collections.abc import Sequence

from twinflow.protos.errors import Unauthenticated

_SCHEME = "Bearer "
# A longer header is refused unread; real keys are far shorter.
_MAX_HEADER = 4096
_ID_LENGTH = 16


class Authenticator:
    """Knows the digests of the valid keys.

    Args:
        keys: any of them is accepted, so that keys can be rotated.
        name: what a key is called in errors.
        closed: why nobody gets in where there are no keys; empty lets everybody in.

    Raises:
        ValueError: a key is empty.
    """

    def __init__(
        self, keys: Sequence[str] = (), *, name: str = "API key", closed: str = ""
    ) -> None:
        if any(not key for key in keys):
            raise ValueError(f"an {name} must not be empty")
        self._name = name
        self._closed = closed
        self._digests = [_digest(key) for key in keys]

    def check(self, header: str | None) -> str:
        """The id of the key in an `Authorization` header, `Bearer <key>`.

        Returns:
            The beginning of the key's digest: names the caller without telling the key. Empty
            when no keys are set.

        Raises:
            Unauthenticated: no header, another scheme, or a key that is not valid.
        """
        if not self._digests:
            if self._closed:
                raise Unauthenticated(self._closed)
            return ""
        if header is None:
            raise Unauthenticated(
                f"An {self._name} is required: send 'Authorization: Bearer <key>'."
            )
        if not header.startswith(_SCHEME) or len(header) > _MAX_HEADER:
            raise Unauthenticated("The Authorization header must be 'Bearer <key>'.")
        given = _digest(header.removeprefix(_SCHEME))
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        if not any(matches):
            raise Unauthenticated(f"The {self._name} is not valid.")
        return given.hex()[:_ID_LENGTH]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
