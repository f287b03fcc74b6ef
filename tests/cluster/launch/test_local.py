"""What processes of the local launcher find in their environment."""

from collections.abc import Mapping

import pytest
from tests.support.engines import ManualClock

from twinflow.cluster.launch.base import ServiceSpec, ServiceStatus
from twinflow.cluster.launch.local import gpu_environment, service_environment
from twinflow.cluster.launch.silence import Silence


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "1"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "1"),
        ({"CUDA_VISIBLE_DEVICES": "4,6"}, "6"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937, GPU-d72ccb8b"}, "GPU-d72ccb8b"),
    ],
)
def test_a_process_sees_its_own_gpu_only(environ: Mapping[str, str], expected: str) -> None:
    assert gpu_environment(1, environ) == {"CUDA_VISIBLE_DEVICES": expected}
    assert gpu_environment(None, environ) == {}


def test_libraries_are_told_before_they_load() -> None:
    on_cpu = service_environment(ServiceSpec("worker", "mixed-0", b"", threads=3))
    on_gpu = service_environment(ServiceSpec("worker", "mixed-0", b"", gpu=0))
    assert (on_cpu["OMP_NUM_THREADS"], on_gpu["OMP_NUM_THREADS"]) == ("3", "1")
    assert on_gpu["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert "TORCH_NCCL_ASYNC_ERROR_HANDLING" not in on_cpu


def test_a_process_that_starts_may_take_its_time_and_not_be_silent() -> None:
    clock = ManualClock()
    silence = Silence(clock, first_s=60, next_s=20)
    starting = ServiceStatus("starting", "loading weights")
    for seconds in (59, 19, 19):
        clock.advance(seconds)
        assert silence.judge("decode-0", starting) is starting
        silence.broken()
    clock.advance(21)
    judged = silence.judge("decode-0", starting)
    assert judged.state == "gone"
    assert "decode-0 stands still: nothing was heard of it for 20 s (loading weights)" in str(
        judged
    )
    ready = ServiceStatus("ready")
    assert silence.judge("decode-0", ready) is ready
