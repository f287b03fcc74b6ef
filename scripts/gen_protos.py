"""Generate the Python stubs of protos/ with grpcio-tools.

Usage: gen_protos.py [--check]

Without a flag the stubs are written beside their .proto files. With --check nothing is written
and the exit status says whether the committed stubs are what the .proto files generate.
"""

import argparse
import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent.parent / "protos"
# protoc names Python modules after the proto path; ours live below twinflow.protos.
PROTO_IMPORT = re.compile(r"^(from|import) twinflow\.", re.MULTILINE)


def sources() -> list[str]:
    """Paths of all .proto files, relative to protos/."""
    return sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))


def generate(target: Path) -> None:
    """Write the stubs of every .proto file below `target`."""
    wellknown = str(files("grpc_tools") / "_proto")
    outputs = [f"--{kind}={target}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    status = protoc.main(["protoc", f"-I{PROTOS}", f"-I{wellknown}", *outputs, *sources()])
    if status != 0:
        raise SystemExit(f"protoc failed with status {status}")
    for stub in stubs(target):
        stub.write_text(PROTO_IMPORT.sub(r"\1 twinflow.protos.twinflow.", stub.read_text()))


def stubs(root: Path) -> list[Path]:
    """The generated files below `root`."""
    return sorted(path for path in root.rglob("*_pb2*") if path.suffix in {".py", ".pyi"})


def stale(fresh: Path) -> list[str]:
    """Names of stubs that are missing, left over or different from the ones in `fresh`."""
    want = {path.relative_to(fresh): path.read_bytes() for path in stubs(fresh)}
    have = {path.relative_to(PROTOS): path.read_bytes() for path in stubs(PROTOS)}
    return sorted(
        str(name) for name in want.keys() | have.keys() if want.get(name) != have.get(name)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        generate(PROTOS)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        names = stale(Path(scratch))
    for name in names:
        sys.stderr.write(f"protos/{name} is stale: run scripts/gen_protos.py\n")
    return 1 if names else 0


if __name__ == "__main__":
    raise SystemExit(main())
