"""Verification rules by name."""

from collections.abc import Callable

from twinflow.protos.errors import ConfigError
from twinflow.runtime.speculative.verification.base import VerificationRule
from twinflow.runtime.speculative.verification.matching import Matching, drawn, likeliest, own
from twinflow.runtime.speculative.verification.rejection import TokenRejection
from twinflow.runtime.speculative.verification.traversal import Traversal

_RULES: dict[str, Callable[[], VerificationRule]] = {}


def register_rule(name: str, build: Callable[[], VerificationRule]) -> None:
    """Make a rule available under a name; a name can be taken only once."""
    if name in _RULES:
        raise ValueError(f"a verification rule named {name!r} is already registered")
    _RULES[name] = build


def create_rule(name: str) -> VerificationRule:
    """The rule with this name.

    Raises:
        ConfigError: there is none.
    """
    build = _RULES.get(name)
    if build is None:
        raise ConfigError(f"verification rule {name!r}: unknown; choose one of {rule_names()}")
    return build()


def rule_names() -> list[str]:
    """Every name."""
    return sorted(_RULES)


register_rule("coupled", lambda: Matching(own))
register_rule("greedy", lambda: Matching(likeliest))
register_rule("match", lambda: Matching(drawn))
register_rule("standard", TokenRejection)
# One rule with two names: that of its use on chains, and that of its use on trees.
register_rule("block", Traversal)
register_rule("traversal", Traversal)
