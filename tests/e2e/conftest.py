"""What the tests of whole deployments share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.deployments import Deployment, serving
from tests.support.served_models import require_real_model, write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with a chat template."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2-135M."""
    return require_real_model()


@pytest.fixture(scope="session")
def real_deployment(real_model: Path, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """SmolLM2 in fp32 behind one prefill and one decode worker, started by Ray."""
    flags = ("--launcher", "ray", "--dtype", "float32", "--max-model-len", "2048")
    with serving(real_model, *flags, "--served-model-name", "smollm2-135m") as deployment:
        reporter = request.config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None
        reporter.write_line(f"\ntwinflow serve was ready after {deployment.start_s} s")
        yield deployment
