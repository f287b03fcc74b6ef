"""What an operator may choose about speculation: vLLM's `--speculative-config`, checked.

Knows names and bounds; what drafters there are is the registry's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

import msgspec

from twinflow.runtime.nearest import did_you_mean
from twinflow.runtime.speculative.layer_parallel.config import AUTO, LayerParallelConfig, check_keys
from twinflow.runtime.speculative.trees.config import TreeConfig
from twinflow.runtime.speculative.trees.registry import static_tree
from twinflow.runtime.speculative.vllm_keys import refuse_vllm_key

DRAFT_MODEL = "draft_model"
EASYSPEC = "easyspec"
WITH_MODEL = (DRAFT_MODEL, EASYSPEC)

# Keys that mean something to some methods only, by how they begin.
_OWN_KEYS = {
    "prompt_lookup_": ("ngram",),
    "suffix_decoding_": ("suffix",),
    "model": WITH_MODEL,
    "draft_tensor_parallel_size": WITH_MODEL,
    "layer_parallel": (EASYSPEC,),
    "draft_kv": WITH_MODEL,
}
_MOST_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeConfig:
    """How next tokens are guessed; names are vLLM's, and so are the defaults that are not None.

    Attributes:
        method: name of the drafter; `parse` takes `draft_model` where only a model is named.
        model: directory of the model that drafts; for `draft_model` and `easyspec`.
        draft_tensor_parallel_size: ranks that draft together, of those of the worker; None for one,
            or for `easyspec` as many as its layout takes.
        layer_parallel: how `easyspec` computes the layers of the model.
        draft_kv: where a prompt comes from another worker, the drafter's KV of it is computed again
            (`rebuild`), handed over too (`transfer`), or what is predicted to be cheaper (`auto`).
        num_speculative_tokens: most tokens proposed to a request at a time.
        tree: shape of proposals that branch, of `num_speculative_tokens` nodes; None for chains.
        adaptive: propose fewer tokens, or none, where that is predicted to be faster.
        adaptive_decisions: directory in which each engine writes every such decision to a file of
            its own; None for none.
        prompt_lookup_min: fewest last tokens that must occur earlier; None for 2.
        prompt_lookup_max: most that are compared; None for 5, or the least if that is more.
        suffix_decoding_max_tree_depth: most tokens of match and proposal together.
        suffix_decoding_max_cached_requests: earlier outputs that are remembered.
        suffix_decoding_max_spec_factor: tokens proposed per matching token.
        suffix_decoding_min_token_prob: smallest share of matches that must have gone on so.
    """

    method: str
    model: str | None = None
    draft_tensor_parallel_size: int | None = None
    layer_parallel: LayerParallelConfig = field(default_factory=LayerParallelConfig)
    draft_kv: Literal["auto", "rebuild", "transfer"] = "auto"
    num_speculative_tokens: int = 5
    tree: TreeConfig | None = None
    adaptive: bool = True
    adaptive_decisions: str | None = None
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
        if self.method in WITH_MODEL and not self.model:
            raise ValueError(f"method {self.method} needs 'model': the directory of a small model")
        ranks = self.draft_tensor_parallel_size
        if ranks is not None and ranks < 1:
            raise ValueError(f"draft_tensor_parallel_size must be at least 1, not {ranks}")
        if self.tree is not None and not self.layer_parallel.calibrate:
            raise ValueError(
                "layer_parallel.calibrate false is for chains: a tree is drafted from exact keys "
                "and values; leave out 'tree' or calibrate"
            )
        layout = self.layer_parallel.layout
        if ranks is not None and layout != AUTO and (ranks == 1) != (layout == "single"):
            drafts = "one rank" if layout == "single" else "several ranks"
            raise ValueError(
                f"draft_tensor_parallel_size is {ranks}, and layer_parallel.layout {layout} drafts "
                f"on {drafts}: leave one of them out"
            )
        if self.adaptive_decisions is not None and not self.adaptive:
            raise ValueError(
                "adaptive_decisions has nothing to write where adaptive is false: leave one of "
                "them out"
            )

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Most nodes of each level of a proposal."""
        if self.tree is None:
            return (1,) * self.num_speculative_tokens
        return static_tree(self.tree, self.num_speculative_tokens).widths

    @classmethod
    def parse(cls, given: object) -> "SpeculativeConfig":
        """Read a JSON object, or its text.

        Raises:
            ValueError: it is none, a key is unknown or of another method, or a value is of another
                type or out of bounds.
        """
        values = _object(given)
        known = [item.name for item in fields(cls)]
        for key in values:
            refuse_vllm_key(key)
            if key not in known:
                raise ValueError(f"{key!r} is unknown{did_you_mean(key, known)}")
        if values.get("method") is None:
            if not values.get("model"):
                raise ValueError("'method' is missing: say how tokens are proposed, such as ngram")
            values["method"] = DRAFT_MODEL
        method = values["method"]
        for key in values:
            for beginning, owners in _OWN_KEYS.items():
                if key.startswith(beginning) and method not in owners:
                    raise ValueError(
                        f"{key!r} is of method {' and '.join(owners)}, and the method is {method}"
                    )
        if "layer_parallel" in values:
            check_keys(values["layer_parallel"])
        tree = values.get("tree")
        if isinstance(tree, Mapping):
            values.update(_without_budget(tree, values.get("num_speculative_tokens")))
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


def _without_budget(tree: Mapping[str, object], nodes: object) -> dict[str, object]:
    """A tree whose `budget`, another word for `num_speculative_tokens`, stands there."""
    shape = dict(tree)
    budget = shape.pop("budget", nodes)
    known = [*(field.name for field in fields(TreeConfig)), "budget"]
    for key in shape:
        if key not in known:
            raise ValueError(f"'tree.{key}' is unknown{did_you_mean(key, known)}")
    if nodes is not None and budget != nodes:
        raise ValueError(
            f"tree.budget ({budget}) and num_speculative_tokens ({nodes}) both say how many nodes "
            f"a tree has: leave one of them out"
        )
    return {"tree": shape} | ({} if budget is None else {"num_speculative_tokens": budget})
