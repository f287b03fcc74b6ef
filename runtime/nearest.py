"""Finds the name that somebody probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, valid: Iterable[str], *, prefix: str = "") -> str | None:
    """The valid name nearest to `name`, if one is near: spelt alike, or with `name` as a word.

    A prefix that all names share says nothing about how near they are, and is not compared.
    """
    candidates = [candidate.removeprefix(prefix) for candidate in valid]
    word = name.removeprefix(prefix)
    near = get_close_matches(word, candidates, n=1)
    near = near or [candidate for candidate in candidates if word in candidate.split("-")]
    return prefix + near[0] if near else None


def did_you_mean(name: str, valid: Iterable[str], *, prefix: str = "", otherwise: str = "") -> str:
    """`; did you mean X?` for the valid name nearest to `name`, or `otherwise` if none is near."""
    near = nearest(name, valid, prefix=prefix)
    return otherwise if near is None else f"; did you mean {near}?"
