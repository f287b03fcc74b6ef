"""What the tests of whole deployments share."""

from pathlib import Path

import pytest
from tests.support.served_models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with a chat template."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
