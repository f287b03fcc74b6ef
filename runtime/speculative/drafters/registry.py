"""Drafters by name, made from what an operator has chosen."""

from collections.abc import Callable
from dataclasses import dataclass

from twinflow.runtime.nearest import did_you_mean
from twinflow.runtime.speculative.config import WITH_MODEL, SpeculativeConfig
from twinflow.runtime.speculative.drafters.base import Drafter
from twinflow.runtime.speculative.drafters.ngram import NgramConfig, NgramDrafter
from twinflow.runtime.speculative.drafters.suffix import SuffixConfig, SuffixDrafter
from twinflow.runtime.speculative.drafters.token_recycling import (
    RecyclingConfig,
    TokenRecyclingDrafter,
)
from twinflow.runtime.speculative.trees.registry import SEQUOIA, tree_builder

# Methods that can propose trees.
_BRANCHING = (*WITH_MODEL, "token_recycling")
_SHORTEST_LOOKUP, _LONGEST_LOOKUP = 2, 5


@dataclass(frozen=True, slots=True)
class DrafterSetup:
    """What drafters are made from.

    Attributes:
        config: what was chosen.
        vocab_size: of the model whose tokens are guessed.
        load: loads the drafter that has a model.
    """

    config: SpeculativeConfig
    vocab_size: int
    load: Callable[[SpeculativeConfig], Drafter]


DrafterBuilder = Callable[[DrafterSetup], Drafter]

_DRAFTERS: dict[str, DrafterBuilder] = {}


def register_drafter(name: str, build: DrafterBuilder) -> None:
    """Make a drafter available under a name; a name can be taken only once."""
    if name in _DRAFTERS:
        raise ValueError(f"a drafter named {name!r} is already registered")
    _DRAFTERS[name] = build


def create_drafter(setup: DrafterSetup) -> Drafter:
    """Build what was chosen.

    Raises:
        ValueError: there is no such method, or its settings mean nothing.
    """
    config = setup.config
    if config.tree is not None:
        tree_builder(config.tree.type)
        if config.method not in _BRANCHING:
            raise ValueError(
                f"'tree' is of methods {', '.join(_BRANCHING)}, and the method is {config.method}"
            )
        if not config.layer_parallel.calibrate:
            raise ValueError(
                "layer_parallel.calibrate is false, and a tree begins with an exact pass: leave "
                "one of them out"
            )
    build = _DRAFTERS.get(config.method)
    if build is None:
        hint = did_you_mean(
            config.method, _DRAFTERS, otherwise=f"; choose one of {drafter_names()}"
        )
        raise ValueError(f"method {config.method!r} is unknown{hint}")
    return build(setup)


def check_drafter(config: SpeculativeConfig) -> None:
    """Refuse what `create_drafter` would refuse, as far as it shows without loading a model.

    Raises:
        ValueError: likewise.
    """
    create_drafter(DrafterSetup(config, 1, lambda _: NgramDrafter(NgramConfig())))


def drafter_names() -> list[str]:
    """Every name."""
    return sorted(_DRAFTERS)


def _ngram(setup: DrafterSetup) -> Drafter:
    config = setup.config
    shortest, longest = config.prompt_lookup_min, config.prompt_lookup_max
    if shortest is None:
        shortest = min(_SHORTEST_LOOKUP, longest or _SHORTEST_LOOKUP)
    if longest is None:
        longest = max(_LONGEST_LOOKUP, shortest)
    return NgramDrafter(NgramConfig(shortest=shortest, longest=longest))


def _suffix(setup: DrafterSetup) -> Drafter:
    config = setup.config
    return SuffixDrafter(
        SuffixConfig(
            max_tree_depth=config.suffix_decoding_max_tree_depth,
            max_cached_requests=config.suffix_decoding_max_cached_requests,
            max_spec_factor=config.suffix_decoding_max_spec_factor,
            min_token_prob=config.suffix_decoding_min_token_prob,
        )
    )


def _token_recycling(setup: DrafterSetup) -> Drafter:
    config = setup.config
    if config.tree is not None and config.tree.type != SEQUOIA:
        raise ValueError(
            f"tree.type is {config.tree.type!r}, and token_recycling knows what is likely but "
            f"not how likely: choose sequoia"
        )
    return TokenRecyclingDrafter(
        RecyclingConfig(
            vocab_size=setup.vocab_size, nodes=config.num_speculative_tokens, tree=config.tree
        )
    )


for _method in WITH_MODEL:
    register_drafter(_method, lambda setup: setup.load(setup.config))
register_drafter("ngram", _ngram)
register_drafter("suffix", _suffix)
register_drafter("token_recycling", _token_recycling)
