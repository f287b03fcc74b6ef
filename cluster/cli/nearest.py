"""Finds the name that somebody probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, valid: Iterable[str], *, prefix: str = "", otherwise: str = "") -> str:
    """`; did you mean X?` for the valid name nearest to `name`, or `otherwise` if none is near.

    A prefix that all names share says nothing about how near they are, and is not compared.
    """
    candidates = [candidate.removeprefix(prefix) for candidate in valid]
    near = get_close_matches(name.removeprefix(prefix), candidates, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else otherwise
