"""Each budget finds a planted excess, and nothing at the budget."""

import ast
from pathlib import Path

import pytest
from scripts.check_house import findings, paths_of_this_machine, summary
from scripts.sources import Source

DOCSTRING = '"""Says something."""\n'


def source(code: str) -> Source:
    return Source(Path("runtime/example.py"), code, ast.parse(code))


def found(code: str) -> list[str]:
    return list(findings(source(DOCSTRING + code)))


def function(lines: int) -> str:
    return "def long():\n" + "    pass\n" * (lines - 1)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (function(81), "long: 81 lines, at most 80"),
        ("x = 1\n" * 500, "501 lines, at most 500"),
        ("def f(a, b, c, d, e, f, g): ...", "f: 7 parameters"),
        ("def f(a, b, c, d, e, *, f, g): ...", "f: 7 parameters"),
        ("class C:\n    def m(self, a, b, c, d, e, f, g): ...", "m: 7 parameters"),
        ("class C:\n    def __init__(self, a, b, c, d, e, f, g): ...", "__init__: 7 parameters"),
        ("def f():\n    global x\n    x = 1", "global x"),
        ("try:\n    f()\nexcept:\n    pass", "broad except"),
        ("try:\n    f()\nexcept Exception:\n    pass", "broad except"),
        ("try:\n    f()\nexcept (OSError, BaseException) as e:\n    pass", "broad except"),
    ],
)
def test_a_planted_excess_is_found(code: str, message: str) -> None:
    (finding,) = found(code)
    assert finding.startswith("runtime/example.py:") and message in finding


@pytest.mark.parametrize(
    "code",
    [
        function(80),
        "x = 1\n" * 499,
        "class C:\n    def m(self, a, b, c, d, e, f): ...",
        "class C:\n    def __init__(self, a, *, b, c, d, e, f, g, h): ...",
        "try:\n    f()\nexcept Exception:  # the edge of a process\n    pass",
        "try:\n    f()\nexcept OSError:\n    pass",
    ],
)
def test_what_is_within_budget_is_not(code: str) -> None:
    assert found(code) == []


def test_a_module_says_what_it_does() -> None:
    (finding,) = findings(source("x = 1\n"))
    assert "no module docstring" in finding


def test_paths_of_the_authors_machine() -> None:
    places = ("/home/ada", "/srv/build")
    text = "see /home/ada/notes.md, /usr/bin/env, src/home/ada/x and http://x/srv/build/y"
    assert paths_of_this_machine(text, places) == ["/home/ada/notes.md"]


def test_the_summary_measures_functions_and_files() -> None:
    text = summary([source(DOCSTRING + function(10)), source(DOCSTRING)])
    assert "2 files, 12 lines; function p90 10" in text
