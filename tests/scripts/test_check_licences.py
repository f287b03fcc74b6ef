"""Licences: expressions are weighed, and what we require is found and allowed."""

import pytest
from scripts.check_licences import declared_licence, is_allowed, required_packages


@pytest.mark.parametrize(
    "expression",
    [
        "MIT",
        "MIT OR GPL-3.0-only",
        "Apache-2.0 AND BSD-3-Clause",
        "GPL-2.0-only OR MIT AND Zlib",
        "Apache-2.0 WITH LLVM-exception",
        "(MIT OR Apache-2.0) AND BSD-2-Clause",
    ],
)
def test_allowed(expression: str) -> None:
    assert is_allowed(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "GPL-3.0-only",
        "MIT AND GPL-3.0-only",
        "AGPL-3.0-only OR GPL-3.0-only",
        "LicenseRef-Proprietary",
        "(MIT OR Apache-2.0) AND GPL-2.0-only",
    ],
)
def test_not_allowed(expression: str) -> None:
    assert not is_allowed(expression)


def test_requirements_are_followed_through_extras() -> None:
    packages = required_packages()
    assert {"torch", "fastapi", "starlette", "gguf", "click"} <= set(packages)
    assert "twinflow" not in packages
    assert "pytest" not in packages, "development tools are not shipped"
    assert "sympy" not in packages, "torch brings its own"


@pytest.mark.parametrize(
    ("package", "licence"),
    [
        ("numpy", "BSD-3-Clause"),  # an expression
        ("ray", "Apache-2.0"),  # an old name in the licence field
        ("safetensors", "Apache-2.0"),  # a classifier only
    ],
)
def test_what_packages_declare(package: str, licence: str) -> None:
    assert declared_licence(package).startswith(licence)
