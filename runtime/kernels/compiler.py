"""Compiles the C++ kernels for the processor at hand, once.

The library is kept under a name that says what it was made from: sources, compiler, options and
processor. Whoever needs it next loads it; several processes that start at once may each compile it,
and the last rename wins with the same content. Nothing is loaded here.
"""

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "cpp"
_COMPILERS = ("c++", "g++", "clang++")
_OPTIONS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    # A product and a sum are rounded apart unless a kernel says otherwise.
    "-ffp-contract=off",
    "-fopenmp",
    "-fPIC",
    "-shared",
)
_DEADLINE_S = 600.0


class CompilerError(Exception):
    """The kernels cannot be compiled here; the message says why."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C++ compiler.

    Attributes:
        path: of the program.
        version: what it says of itself.
    """

    path: str
    version: str

    @classmethod
    def find(cls) -> "Compiler":
        """The first usual one on the path.

        Raises:
            CompilerError: there is none.
        """
        for name in _COMPILERS:
            path = shutil.which(name)
            if path is not None:
                return cls(path, _run([path, "--version"]))
        raise CompilerError(f"no C++ compiler was found: none of {', '.join(_COMPILERS)}")

    def compile(self, sources: list[Path], target: Path) -> None:
        """Make a shared library that finds torch's OpenMP threads.

        Raises:
            CompilerError: the compiler refuses.
        """
        # The loaded OpenMP library comes first; the linker then leaves out the compiler's own.
        libraries = ["-Wl,--as-needed", *_loaded_openmp()]
        _run([self.path, *_OPTIONS, *map(str, sources), "-o", str(target), *libraries])


def sources_digest() -> str:
    """Digest of the sources: what the kernels compute, whatever machine they are compiled for."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(f"{path.name}:{path.stat().st_size}:".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def load_compiled(cache: Path) -> ctypes.CDLL:
    """The library, from the cache if it is there, else compiled.

    Args:
        cache: folder of compiled libraries; where it cannot be written to, the library is compiled
            anew by each process.

    Raises:
        CompilerError: it cannot be compiled or loaded.
    """
    compiler = Compiler.find()
    made_from = (sources_digest(), compiler.version, *_OPTIONS, *_loaded_openmp(), _processor())
    name = f"kernels-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]}.so"
    target = cache / name
    if target.exists():
        with suppress(CompilerError):  # damaged: it is replaced
            return _load(target)
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=cache)
    except OSError:
        folder = tempfile.TemporaryDirectory()
    with folder as made_in:
        made = Path(made_in) / name
        compiler.compile(sorted(SOURCES.glob("*.cpp")), made)
        if made.parent.parent == cache:
            made.replace(target)
            return _load(target)
        return _load(made)


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompilerError(f"{path}: cannot be loaded: {error}") from error


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f"{command[0]}: {error}") from error
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise CompilerError(f"{command[0]}: {reason[0]}")
    return done.stdout


def _processor() -> str:
    """What `-march=native` goes by: model and features of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model", "model name", "flags", "Features", "CPU part")
    first = {line.partition("\t")[0].rstrip(): line for line in reversed(lines)}
    return "\n".join(first[name] for name in wanted if name in first)


def _loaded_openmp() -> list[str]:
    """The OpenMP library that torch has brought, if it can be found.

    With a library of its own, a second set of threads would compete with torch's.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
    names = ("libgomp", "libiomp5", "libomp")
    found = sorted(path for path in paths if Path(path).name.startswith(names))
    return found[:1]
