"""Check that everything twinflow needs at run time may be shipped beside Apache-2.0 code.

Walks the requirements of the installed twinflow, extras included, and reads the licence that each
package declares. Development tools are not shipped and not checked. torch is checked and what it
requires is not: which build of torch, and so which vendor libraries, is the user's choice.

Usage: python -m scripts.check_licences
"""

import re
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from scripts.sources import report

PROJECT = "twinflow"
NOT_DESCENDED = frozenset({"torch"})

ALLOWED = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "HPND",
        "ISC",
        "MIT",
        "MPL-2.0",  # by the file; used unchanged
        "PSF-2.0",
        "Unlicense",
        "Zlib",
    }
)
# What packages wrote, and some still write, instead of SPDX identifiers.
OLD_NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
_CLASSIFIER = "License :: OSI Approved :: "
_LONGEST_NAME = 80


def required_packages(project: str = PROJECT) -> list[str]:
    """Names of the installed packages that `project` needs, directly or not, without itself."""
    extras = metadata.metadata(project).get_all("Provides-Extra") or []
    pending = [(project, extra) for extra in ("", *extras)]
    seen: set[tuple[str, str]] = set()
    while pending:
        name, extra = pending.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name not in NOT_DESCENDED:
            for requirement in map(Requirement, metadata.requires(name) or []):
                if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                    needed = canonicalize_name(requirement.name)
                    pending += [(needed, wanted) for wanted in ("", *requirement.extras)]
    return sorted({name for name, _ in seen} - {project})


def declared_licence(package: str) -> str:
    """The licence expression of an installed package; empty if it declares none.

    Packages that have no expression may have a short licence field, or classifiers, of which all
    are taken to hold.
    """
    fields = metadata.metadata(package).json
    expression = str(fields.get("license_expression", ""))
    if expression:
        return expression
    field = str(fields.get("license", ""))
    if field and len(field) <= _LONGEST_NAME and "\n" not in field:
        return OLD_NAMES.get(field, field)
    classifiers = [text for text in fields.get("classifier", ()) if text.startswith(_CLASSIFIER)]
    names = [text.removeprefix(_CLASSIFIER) for text in classifiers]
    return " AND ".join(OLD_NAMES.get(name, name) for name in names)


def is_allowed(expression: str) -> bool:
    """Whether an SPDX expression leaves a choice of licences that are all allowed.

    With parentheses every licence named must be allowed, which is stricter than SPDX.
    """
    if "(" in expression:
        return all(
            term.strip() in ALLOWED
            for term in re.split(r"[()]|\bAND\b|\bOR\b", expression)
            if term.strip()
        )
    return any(
        all(term.strip() in ALLOWED for term in choice.split(" AND "))
        for choice in expression.split(" OR ")
    )


def main() -> int:
    """Check every package that is needed."""
    licences = {package: declared_licence(package) for package in required_packages()}
    return report(
        [
            f"{package}: licence {licence or 'not declared'!r} is not among those allowed"
            for package, licence in licences.items()
            if not is_allowed(licence)
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
