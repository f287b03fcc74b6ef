"""Directories of certificates as `--internal-tls` takes them, signed by an authority of tests."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme

NAME = "deployment.test"
DAY = timedelta(days=1)


class Authority:
    """Signs certificates; another one of the same name is still another one."""

    def __init__(self) -> None:
        self.ca = trustme.CA(organization_name="tests")

    def write(self, directory: Path, *names: str, **issue: Any) -> Path:
        """Put a set into a directory, new or in place of another; returns the directory.

        Args:
            directory: made if it is not there.
            names: what the certificate is for; the deployment of the tests by default.
            issue: more for `trustme.CA.issue_cert`.
        """
        directory.mkdir(exist_ok=True)
        issued = self.ca.issue_cert(*(names or (NAME,)), **issue)
        for name, content in (
            ("ca.crt", self.ca.cert_pem.bytes()),
            ("tls.crt", issued.cert_chain_pems[0].bytes()),
            ("tls.key", issued.private_key_pem.bytes()),
        ):
            put(directory / name, content)
        return directory

    def write_expired(self, directory: Path) -> Path:
        """A set that was good until yesterday."""
        return self.write(directory, not_after=datetime.now(UTC) - DAY)

    def write_early(self, directory: Path) -> Path:
        """A set that is good from tomorrow on."""
        return self.write(directory, not_before=datetime.now(UTC) + DAY)


def put(path: Path, content: bytes) -> None:
    """Replace a file in one go, as whoever renews certificates does."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    os.replace(fresh, path)
