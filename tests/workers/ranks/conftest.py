"""One tiny model that several ranks can share."""

from pathlib import Path

import pytest
from tests.support.rank_workers import write_ranked_checkpoint


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the model."""
    return write_ranked_checkpoint(tmp_path_factory.mktemp("ranked"))
