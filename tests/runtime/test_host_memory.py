"""What is left of the machine's memory, and of a container's."""

from pathlib import Path

from twinflow.runtime.host_memory import MemoryShare, available_memory, taken_memory

KIB = 1024


def machine(root: Path, available_kib: int | None = 1000) -> Path:
    """A `/proc` that tells what is available, or does not."""
    (root / "proc").mkdir()
    lines = ["MemTotal:  4000 kB", "MemFree:  10 kB"]
    if available_kib is not None:
        lines.append(f"MemAvailable:  {available_kib} kB")
    (root / "proc/meminfo").write_text("\n".join(lines) + "\n")
    return root


def container(root: Path, limit: str, used: int, cached: int) -> Path:
    """A control group, version 2."""
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(limit + "\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 7\n")
    return root


def test_what_the_kernel_could_free(tmp_path: Path) -> None:
    assert available_memory(machine(tmp_path)) == 1000 * KIB


def test_a_container_without_a_limit(tmp_path: Path) -> None:
    assert available_memory(container(machine(tmp_path), "max", 10, 5)) == 1000 * KIB


def test_a_container_that_is_smaller_than_the_machine(tmp_path: Path) -> None:
    assert available_memory(container(machine(tmp_path), "500000", 300_000, 100_000)) == 300_000


def test_a_container_that_is_full(tmp_path: Path) -> None:
    assert available_memory(container(machine(tmp_path), "500", 900, 100)) == 0


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    """All the memory there is, then."""
    assert available_memory(tmp_path) == available_memory(machine(tmp_path, None)) > 1 << 20


def test_this_machine() -> None:
    assert available_memory() > 1 << 20


def test_a_share_is_an_equal_part_and_says_so() -> None:
    share = MemoryShare(free=3 * 2**30, parts=2)
    assert share.size == 3 * 2**29
    assert str(share) == "1/2 of the 3.00 GiB that the host had free"
    assert str(MemoryShare(2**30, parts=1)) == "the 1.00 GiB that the host had free"


def test_what_this_process_has_taken(tmp_path: Path) -> None:
    before = taken_memory()
    block = b"x" * (64 << 20)
    assert taken_memory() - before > len(block) // 2
    assert taken_memory(tmp_path) == 0
