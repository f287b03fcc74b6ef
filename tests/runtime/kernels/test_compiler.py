"""Compiling on the first use, finding it again, and doing without a compiler."""

import ctypes
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from tests.support.kernels import native_library

from twinflow.protos.errors import ConfigError
from twinflow.runtime.kernels import compiler
from twinflow.runtime.kernels.compiler import CompilerError, load_compiled
from twinflow.runtime.kernels.native import NativeKernels
from twinflow.runtime.kernels.plain import TorchKernels
from twinflow.runtime.kernels.registry import choose_kernels, create_kernels, register_kernels

TINY = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the source of a library that compiles at once."""
    native_library()  # without a compiler there is nothing to test here
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "tiny.cpp").write_text(TINY)
    monkeypatch.setattr(compiler, "SOURCES", folder)
    return folder


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_COMPILERS", ("no-such-compiler",))


def answer(library: ctypes.CDLL) -> int:
    return int(library.answer())


def test_a_library_is_compiled_once(sources: Path, tmp_path: Path) -> None:
    cache = tmp_path / "a" / "cache"
    assert answer(load_compiled(cache)) == 42
    (made,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    before = made.stat().st_mtime_ns
    assert answer(load_compiled(cache)) == 42
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [before]


def test_another_source_is_another_library(sources: Path, tmp_path: Path) -> None:
    load_compiled(tmp_path / "cache")
    digest = compiler.sources_digest()
    (sources / "tiny.cpp").write_text(TINY.replace("42", "43"))
    assert compiler.sources_digest() != digest
    assert answer(load_compiled(tmp_path / "cache")) == 43
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_several_may_compile_at_once(sources: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(load_compiled, [cache] * 3))
    assert [answer(library) for library in found] == [42] * 3
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_done_without(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert answer(load_compiled(tmp_path / "file" / "cache")) == 42


def test_the_compilers_message_is_told(sources: Path, tmp_path: Path) -> None:
    (sources / "tiny.cpp").write_text("#error this is wrong\n")
    with pytest.raises(CompilerError, match="this is wrong"):
        load_compiled(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_library_is_replaced(sources: Path, tmp_path: Path) -> None:
    load_compiled(tmp_path / "whole")
    (made,) = (tmp_path / "whole").iterdir()
    damaged = tmp_path / "damaged" / made.name
    damaged.parent.mkdir()
    damaged.write_text("no library")
    assert answer(load_compiled(damaged.parent)) == 42


def test_without_a_compiler_torch_computes_and_the_log_says_so(no_compiler: None) -> None:
    with capture_logs() as logs:
        found = choose_kernels("auto", "cpu", torch.float32)
    assert isinstance(found, TorchKernels)
    (said,) = logs
    assert "torch computes instead" in said["event"]
    assert "no C++ compiler was found" in said["reason"]


def test_without_a_compiler_native_kernels_are_refused(no_compiler: None) -> None:
    with pytest.raises(ConfigError, match="'native' do not work here: no C\\+\\+ compiler"):
        choose_kernels("native", "cpu", torch.float32)


def test_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    native_library()
    assert isinstance(choose_kernels("auto", "cpu", torch.float32), NativeKernels)
    assert isinstance(choose_kernels("torch", "cpu", torch.float32), TorchKernels)
    assert isinstance(choose_kernels("native", "cuda:0", torch.float32), TorchKernels)
    for has_arithmetic, expected in ((True, TorchKernels), (False, NativeKernels)):
        module = "twinflow.runtime.kernels.registry"
        monkeypatch.setattr(f"{module}.has_bfloat16_arithmetic", lambda has=has_arithmetic: has)
        assert isinstance(choose_kernels("auto", "cpu", torch.bfloat16), expected)


def test_names() -> None:
    with pytest.raises(ConfigError, match=r"'fast': unknown; use auto or one of \['native', 'tor"):
        create_kernels("fast")
    with pytest.raises(ValueError, match="already registered"):
        register_kernels("torch", TorchKernels)


def test_identities_differ() -> None:
    assert TorchKernels().identity != NativeKernels(native_library()).identity
