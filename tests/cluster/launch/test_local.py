"""What processes of the local launcher find in their environment."""

import os
import signal
from collections.abc import Mapping

import pytest
from tests.support.engines import ManualClock

from twinflow.cluster.launch.base import ServiceSpec, ServiceStatus
from twinflow.cluster.launch.local import (
    LocalLauncher,
    Shell,
    gpu_environment,
    service_environment,
)
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


def test_a_shell_is_all_that_must_be_known_before_code_loads() -> None:
    spec = ServiceSpec("worker", "decode-0", b"{}", threads=2)
    same = ServiceSpec("worker", "prefill-0", b"[]", threads=2)
    assert Shell.of(spec, {"A": "1"}) == Shell.of(same, {"A": "1"})
    for other in (
        ServiceSpec("gateway", "decode-0", b"{}", threads=2),
        ServiceSpec("worker", "decode-0", b"{}", threads=1),
        ServiceSpec("worker", "decode-0", b"{}", threads=2, gpu=0),
        ServiceSpec("worker", "decode-0", b"{}", threads=2, log_level="debug"),
    ):
        assert Shell.of(spec, {"A": "1"}) != Shell.of(other, {"A": "1"})
    assert Shell.of(spec, {"A": "1"}) != Shell.of(spec, {"A": "2"})


class TestStandby:
    """Processes that wait; none of them is told what it is before one is needed."""

    SPEC = ServiceSpec("worker", "decode-0", b"{}")

    def test_nothing_waits_before_the_first_worker_or_unasked(self) -> None:
        launcher = LocalLauncher(with_gpus=False, standby=1)
        launcher.stand_by()
        assert not launcher.waiting
        launcher = LocalLauncher(with_gpus=False)
        launcher.start([self.SPEC])
        launcher.stand_by()
        assert not launcher.waiting
        launcher.close()

    def test_the_next_worker_is_one_that_waited(self) -> None:
        launcher = LocalLauncher(with_gpus=False, standby=1)
        try:
            (first,) = launcher.start([self.SPEC])
            assert not launcher.waiting
            launcher.stand_by()
            launcher.stand_by()
            (waiting,) = launcher.waiting
            (gateway,) = launcher.start([ServiceSpec("gateway", "gateway-0", b"{}")])
            assert gateway.pid != waiting
            (second,) = launcher.start([ServiceSpec("worker", "decode-1", b"{}")])
            assert (second.pid, second.name) == (waiting, "decode-1")
            assert not launcher.waiting
            assert first.pid != second.pid
        finally:
            launcher.close()
        assert not second.alive

    def test_one_that_died_is_replaced_and_all_end_with_the_launcher(self) -> None:
        launcher = LocalLauncher(with_gpus=False, standby=2)
        launcher.start([self.SPEC])
        launcher.stand_by()
        dead, lives = launcher.waiting
        os.kill(dead, signal.SIGKILL)
        os.waitid(os.P_PID, dead, os.WEXITED | os.WNOWAIT)
        launcher.stand_by()
        kept, new = launcher.waiting
        assert kept == lives != new
        launcher.close()
        assert not launcher.waiting
        for pid in (kept, new):
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
