"""CPU shares from a scripted proc file system."""

import os
from pathlib import Path

import pytest
from benchmarks.load.machine import CpuMeter, machine_cpu, machine_facts, process_cpu, tree_cpu


def _process(proc: Path, pid: int, parent: int, ticks: int, name: str = "python") -> None:
    (proc / str(pid)).mkdir(exist_ok=True)
    head = f"{pid} ({name}) S {parent} 0 0 0 0 0 0 0 0 0"
    (proc / str(pid) / "stat").write_text(f"{head} {ticks} 0 0 0 20 0 1 0\n")


def _machine(proc: Path, user: int, idle: int, steal: int) -> None:
    (proc / "stat").write_text(f"cpu  {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu0 1 2 3\n")


def test_machine_seconds() -> None:
    # user nice system idle iowait irq softirq steal guest guest_nice
    text = "cpu  100 10 50 700 40 5 5 90 60 0\nintr 1\n"
    assert machine_cpu(text, 100) == pytest.approx((10.0, 1.7, 0.9))


def test_a_command_with_blanks_and_parentheses_is_read() -> None:
    stat = "12 (ray::IDLE (x) y) S 7 1 1 0 -1 4194560 1 0 0 0 30 20 5 5 20 0 1 0 100"
    assert process_cpu(stat, 10) == (7, 6.0)


def test_a_tree_is_its_root_and_all_descendants(tmp_path: Path) -> None:
    _process(tmp_path, 1, 0, 1000)
    _process(tmp_path, 10, 1, 100)
    _process(tmp_path, 11, 10, 20)
    _process(tmp_path, 12, 11, 3)
    _process(tmp_path, 20, 1, 5000)
    assert tree_cpu([10], tmp_path, 100) == pytest.approx(1.23)
    assert tree_cpu([11, 20], tmp_path, 100) == pytest.approx(50.23)
    assert tree_cpu([99], tmp_path, 100) == 0.0


def test_shares_tell_the_server_from_others(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    _machine(tmp_path, user=0, idle=0, steal=0)
    _process(tmp_path, 10, 1, 0)
    meter = CpuMeter([10], tmp_path)
    meter.start()
    _machine(tmp_path, user=600 * ticks, idle=300 * ticks, steal=100 * ticks)
    _process(tmp_path, 10, 1, 400 * ticks)
    shares = meter.stop()
    assert shares is not None
    assert shares.server == pytest.approx(0.4)
    assert shares.steal == pytest.approx(0.1)
    # What is busy and neither ours nor the server's: this test took next to nothing of 1000 s.
    assert shares.others + shares.generator == pytest.approx(0.2)
    assert shares.generator < 0.05


def test_without_process_ids_the_server_is_one_of_the_others(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    _machine(tmp_path, user=0, idle=0, steal=0)
    meter = CpuMeter((), tmp_path)
    meter.start()
    _machine(tmp_path, user=600 * ticks, idle=400 * ticks, steal=0)
    shares = meter.stop()
    assert shares is not None
    assert shares.server is None
    assert shares.others + shares.generator == pytest.approx(0.6)


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    meter = CpuMeter((), tmp_path)
    meter.start()
    assert meter.stop() is None
    assert machine_facts(tmp_path)["memory"] == "unknown"


def test_facts_are_read(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Test CPU\n")
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\n")
    facts = machine_facts(tmp_path)
    assert (facts["cpu"], facts["memory"], facts["cores"]) == (
        "Test CPU",
        "1000 kB",
        os.cpu_count(),
    )
