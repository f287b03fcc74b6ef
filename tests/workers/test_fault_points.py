"""Orders to fail: carried out once, at their moment, and by the process that is meant."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from twinflow.protos.errors import HandoffError
from twinflow.workers.fault_points import (
    FaultOrder,
    FaultPoints,
    Point,
    give_order,
    struck,
    take_back,
)


def test_without_a_directory_nothing_is_looked_for() -> None:
    assert not FaultPoints(None, "decode-0").reach(Point.DECODE)


def test_an_order_is_carried_out_once_after_it_was_passed_so_often(tmp_path: Path) -> None:
    points = FaultPoints(tmp_path, "prefill-0")
    give_order(tmp_path, "prefill-0", Point.HAND_OFF, FaultOrder(corrupt=True, skip=2))
    assert [points.reach(Point.HAND_OFF) for _ in range(5)] == [False, False, True, False, False]
    done = struck(tmp_path, "prefill-0", Point.HAND_OFF)
    assert done is not None
    assert abs(done.at - time.time()) < 60


def test_an_order_is_for_one_process_and_one_point(tmp_path: Path) -> None:
    give_order(tmp_path, "prefill-0", Point.HAND_OFF, FaultOrder(corrupt=True))
    assert not FaultPoints(tmp_path, "prefill-1").reach(Point.HAND_OFF)
    assert not FaultPoints(tmp_path, "prefill-0").reach(Point.PREFILL)
    assert struck(tmp_path, "prefill-0", Point.HAND_OFF) is None
    take_back(tmp_path, "prefill-0", Point.HAND_OFF)
    assert not FaultPoints(tmp_path, "prefill-0").reach(Point.HAND_OFF)


def test_a_new_order_forgets_the_old_one(tmp_path: Path) -> None:
    points = FaultPoints(tmp_path, "prefill-0")
    for _ in range(2):
        give_order(tmp_path, "prefill-0", Point.QUEUED, FaultOrder(skip=1))
        assert struck(tmp_path, "prefill-0", Point.QUEUED) is None
        points.reach(Point.QUEUED)
        assert struck(tmp_path, "prefill-0", Point.QUEUED) is None
        points.reach(Point.QUEUED)
        assert struck(tmp_path, "prefill-0", Point.QUEUED) is not None


def test_a_link_is_cut_by_an_error(tmp_path: Path) -> None:
    give_order(tmp_path, "prefill-0", Point.HAND_OFF, FaultOrder(cut=True))
    with pytest.raises(HandoffError, match="ordered to break at the point hand-off"):
        FaultPoints(tmp_path, "prefill-0").reach(Point.HAND_OFF)


def test_a_signal_reaches_whom_it_is_meant_for(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        order = FaultOrder(signal=signal.SIGKILL, pid=child.pid)
        give_order(tmp_path, "decode-0", Point.DECODE, order)
        assert child.poll() is None
        FaultPoints(tmp_path, "decode-0").reach(Point.DECODE)
        assert child.wait(20) == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["decode-0.decode.taken"]
