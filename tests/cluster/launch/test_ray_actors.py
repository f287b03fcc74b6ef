"""What the Ray launcher says when there is no Ray; that it works is for the end-to-end tests."""

import signal

import pytest
import ray

from twinflow.cluster.launch.ray_actors import RayLauncher
from twinflow.cluster.launch.ray_clusters import OwnCluster
from twinflow.protos.errors import SetupError


def test_a_ray_that_does_not_start_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Exception("The current node timed out during startup.\nAnd more.")

    monkeypatch.setattr(ray, "init", init)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SetupError, match=r"timed out during startup\. Its logs .*--launcher local"):
        RayLauncher(OwnCluster(with_gpus=False)).open()
    assert signal.getsignal(signal.SIGTERM) == handler
