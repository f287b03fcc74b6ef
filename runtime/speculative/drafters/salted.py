"""What drafters have learned, apart for each cache salt.

Sequences with different salts must not find out anything about one another, the time that a token
takes included. Few salts are kept; the one that was not used for longest is forgotten first.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Learned = TypeVar("Learned")

_MOST_SALTS = 8


class BySalt(Generic[Learned]):
    """One of something for each cache salt.

    Args:
        make: a new one.
    """

    def __init__(self, make: Callable[[], Learned]) -> None:
        self._make = make
        self._known: OrderedDict[str, Learned] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, cache_salt: str) -> Learned | None:
        """That of a salt, if there is one."""
        return self._known.get(cache_salt)

    def take(self, cache_salt: str) -> Learned:
        """That of a salt, a new one if there was none."""
        found = self._known.pop(cache_salt, None)
        self._known[cache_salt] = self._make() if found is None else found
        if len(self._known) > _MOST_SALTS:
            self._known.popitem(last=False)
        return self._known[cache_salt]
