"""Hold the house budgets of CONTRIBUTING.md.

Walls, which fail: a function of more than 80 lines, a file of more than 500, more than 6
parameters, no module docstring, `global`, a broad `except` without its reason beside it, a
path that exists on the author's machine only. Aims, which are printed: 90 % of functions
within 30 lines and 90 % of files within 300.

self and cls are not counted as parameters. Keyword-only parameters are, except those of public
constructors, which are named at every call anyway.

Usage: python -m scripts.check_house
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from scripts.sources import CODE, ROOT, Source, python_sources, report, tracked_files

MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 500
MAX_PARAMETERS = 6
AIM_FUNCTION_LINES = 30
AIM_FILE_LINES = 300
BROAD = frozenset({"Exception", "BaseException"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


def findings(source: Source) -> Iterator[str]:
    """Every wall that a file runs into."""
    lines = source.text.splitlines()
    if len(lines) > MAX_FILE_LINES:
        yield source.finding(1, f"{len(lines)} lines, at most {MAX_FILE_LINES}")
    if lines and not ast.get_docstring(source.tree):
        yield source.finding(1, "no module docstring: what it does, what it does not")
    for node in ast.walk(source.tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                for message in _function_findings(node):
                    yield source.finding(node.lineno, f"{node.name}: {message}")
            case ast.Global(names=names):
                yield source.finding(node.lineno, f"global {', '.join(names)}")
            case ast.ExceptHandler() if _is_broad(node) and "#" not in lines[node.lineno - 1]:
                yield source.finding(node.lineno, "broad except without its reason beside it")


def function_lines(function: Function) -> int:
    """Lines from `def` to the last one; decorators are not counted."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: Function) -> int:
    """Parameters that count against the budget."""
    spec = function.args
    names = [parameter.arg for parameter in (*spec.posonlyargs, *spec.args)]
    receiver = bool(names) and names[0] in {"self", "cls"}
    is_constructor = function.name in {"__init__", "__new__"}
    return len(names) - receiver + (0 if is_constructor else len(spec.kwonlyargs))


def paths_of_this_machine(text: str, places: tuple[str, ...]) -> list[str]:
    """The absolute paths in `text` that lead into one of `places`."""
    inside = "|".join(re.escape(place) for place in places)
    return re.findall(rf"(?<![\w./-])(?:{inside})/[\w./-]+", text)


def places_of_this_machine() -> tuple[str, ...]:
    """Folders that exist for whoever runs this, and mean nothing to a reader."""
    # /root is the home of many machines, and tests may use it as an example.
    shared = {Path(ROOT.anchor), Path("/root")}
    return tuple(str(path) for path in (ROOT.parent, Path.home()) if path not in shared)


def summary(sources: list[Source]) -> str:
    """How the aims are met, in one line."""
    functions = [
        function_lines(node)
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, Function)
    ]
    files = [len(source.text.splitlines()) for source in sources]
    return (
        f"{len(files)} files, {sum(files)} lines; "
        f"function p90 {_p90(functions)} (aim {AIM_FUNCTION_LINES}), "
        f"file p90 {_p90(files)} (aim {AIM_FILE_LINES})"
    )


def _function_findings(function: Function) -> Iterator[str]:
    length, count = function_lines(function), parameters(function)
    if length > MAX_FUNCTION_LINES:
        yield f"{length} lines, at most {MAX_FUNCTION_LINES}"
    if count > MAX_PARAMETERS:
        yield f"{count} parameters, at most {MAX_PARAMETERS}: make a value object"


def _is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(name is None or (isinstance(name, ast.Name) and name.id in BROAD) for name in names)


def _p90(values: list[int]) -> int:
    return sorted(values)[int(0.9 * (len(values) - 1))] if values else 0


def _machine_findings() -> Iterator[str]:
    places = places_of_this_machine()
    for path in tracked_files():
        text = path.read_text(encoding="utf-8", errors="ignore")
        for found in paths_of_this_machine(text, places):
            yield f"{path.relative_to(ROOT)}: {found} is a path of the author's machine"


def main() -> int:
    """Check the code; tests may be as long as their tables."""
    sources = list(python_sources(CODE))
    sys.stdout.write(summary(sources) + "\n")
    found = [finding for source in sources for finding in findings(source)]
    return report([*found, *_machine_findings()])


if __name__ == "__main__":
    raise SystemExit(main())
