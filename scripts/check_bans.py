"""Forbid what could run or read more than was meant, in package code.

Nothing that comes from a socket or a model directory may be able to execute: no pickle in any
dress, no `eval`, no `torch.load`, no YAML with objects, no collectives that pickle, no code from
model directories. And configuration arrives as arguments: the environment is read in one file.

Reads the syntax tree, not the text, so that prose may name what code may not use. It does not
follow values: a forbidden function under an alias made at run time is not found.

Usage: python -m scripts.check_bans
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from scripts.sources import PACKAGE, Source, python_sources, report

SERIALISERS = frozenset({"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"})
BUILTINS = frozenset({"eval", "exec", "compile", "__import__"})
FUNCTIONS = {
    "torch.load": "safetensors only",
    "torch.save": "safetensors only",
    "yaml.load": "use yaml.safe_load",
    "yaml.load_all": "use yaml.safe_load_all",
    "yaml.unsafe_load": "use yaml.safe_load",
    "yaml.full_load": "use yaml.safe_load",
    "numpy.load": "reads pickles; use safetensors",
}
# Methods and functions of torch.distributed that pickle what they send.
PICKLING_COLLECTIVES = frozenset(
    {
        "all_gather_object",
        "broadcast_object_list",
        "gather_object",
        "recv_object_list",
        "scatter_object_list",
        "send_object_list",
    }
)
REMOTE_CODE = "trust_remote_code"
ENVIRONMENT = frozenset({"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv"})
ENVIRONMENT_READER = Path("cluster/cli/environment.py")


def findings(source: Source) -> Iterator[str]:
    """Everything forbidden in a file."""
    aliases = import_aliases(source.tree)
    written = {
        id(node.value)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(source.tree):
        # `os.environ["X"] = ...` tells child processes something and reads nothing.
        if id(node) not in written:
            for message in _offences(node, aliases, source.path):
                yield source.finding(getattr(node, "lineno", 1), message)


def import_aliases(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for: `{"np": "numpy", "getenv": "os.getenv"}`."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                aliases[name.asname or name.name.partition(".")[0]] = (
                    name.name if name.asname else name.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"
    return aliases


def _offences(node: ast.AST, aliases: dict[str, str], path: Path) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (_serialiser(name.name) for name in names if _is_serialiser(name.name))
        case ast.ImportFrom(module=str(module)) if _is_serialiser(module):
            yield _serialiser(module)
        case ast.Call(func=ast.Name(id=name)) if name in BUILTINS and name not in aliases:
            yield f"{name}() runs text as code"
        case ast.Name(ctx=ast.Load()) | ast.Attribute(ctx=ast.Load()):
            yield from _offences_of_name(_full_name(node, aliases), path)
        case ast.keyword(arg=name) | ast.arg(arg=name) if name == REMOTE_CODE:
            yield f"{REMOTE_CODE}: a model directory brings no code"


def _offences_of_name(name: str, path: Path) -> Iterator[str]:
    if name in FUNCTIONS:
        yield f"{name}: {FUNCTIONS[name]}"
    if name.rpartition(".")[2] in PICKLING_COLLECTIVES:
        yield f"{name} pickles what it sends"
    if name in ENVIRONMENT and path != ENVIRONMENT_READER:
        yield f"{name}: the environment is read in {ENVIRONMENT_READER} only"


def _full_name(node: ast.expr, aliases: dict[str, str]) -> str:
    """The dotted name of an expression with imports resolved; empty for anything else."""
    match node:
        case ast.Name(id=name):
            return aliases.get(name, name)
        case ast.Attribute(value=value, attr=attr):
            return f"{_full_name(value, aliases)}.{attr}"
        case _:
            return ""


def _is_serialiser(module: str) -> bool:
    return module.partition(".")[0] in SERIALISERS


def _serialiser(module: str) -> str:
    return f"import of {module}: what it reads can run code"


def main() -> int:
    """Check the package."""
    return report([found for source in python_sources(PACKAGE) for found in findings(source)])


if __name__ == "__main__":
    raise SystemExit(main())
