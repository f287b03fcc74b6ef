"""What an operator may choose about speculation: vLLM's `--speculative-config`, checked.

Knows names and bounds; what drafters there are is the registry's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

import msgspec

from twinflow.runtime.nearest import did_you_mean

DRAFT_MODEL = "draft_model"

# Keys that mean something to one method only, by how they begin.
_OWN_KEYS = {"prompt_lookup_": "ngram", "suffix_decoding_": "suffix", "model": DRAFT_MODEL}
_MOST_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeConfig:
    """How next tokens are guessed; names are vLLM's, and so are the defaults that are not None.

    Attributes:
        method: name of the drafter.
        model: directory of the model that drafts; for `draft_model` only.
        num_speculative_tokens: most tokens proposed to a request at a time.
        prompt_lookup_min: fewest last tokens that must occur earlier; None for 2.
        prompt_lookup_max: most that are compared; None for 5, or the least if that is more.
        suffix_decoding_max_tree_depth: most tokens of match and proposal together.
        suffix_decoding_max_cached_requests: earlier outputs that are remembered.
        suffix_decoding_max_spec_factor: tokens proposed per matching token.
        suffix_decoding_min_token_prob: smallest share of matches that must have gone on so.
    """

    method: str
    model: str | None = None
    num_speculative_tokens: int = 5
    prompt_lookup_min: int | None = None
    prompt_lookup_max: int | None = None
    suffix_decoding_max_tree_depth: int = 24
    suffix_decoding_max_cached_requests: int = 10_000
    suffix_decoding_max_spec_factor: float = 1.0
    suffix_decoding_min_token_prob: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.num_speculative_tokens <= _MOST_TOKENS:
            raise ValueError(
                f"num_speculative_tokens must be in 1..{_MOST_TOKENS}, not "
                f"{self.num_speculative_tokens}"
            )
        if self.method == DRAFT_MODEL and not self.model:
            raise ValueError("method draft_model needs 'model': the directory of a small model")

    @classmethod
    def parse(cls, given: object) -> "SpeculativeConfig":
        """Read a JSON object, or its text.

        Raises:
            ValueError: it is none, a key is unknown or of another method, or a value is of another
                type or out of bounds.
        """
        values = _object(given)
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"{key!r} is unknown{did_you_mean(key, known)}")
        method = values.get("method")
        if method is None:
            raise ValueError("'method' is missing: say how tokens are proposed, such as ngram")
        for key in values:
            for beginning, owner in _OWN_KEYS.items():
                if key.startswith(beginning) and method != owner:
                    raise ValueError(f"{key!r} is of method {owner}, and the method is {method}")
        return msgspec.convert(values, cls)


def _object(given: object) -> dict[str, object]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ValueError('must be a JSON object, such as {"method": "ngram"}')
    return dict(given)
