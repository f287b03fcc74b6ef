"""Every way to guess tokens that can be configured, in combinations that make sense."""

from pathlib import Path

from tests.support.covering import Combination, covering_array

from twinflow.runtime.speculative.config import SpeculativeConfig

FACTORS = {
    "method": ("easyspec", "draft_model", "token_recycling", "ngram", "suffix"),
    "size": (1, 2, 3, 4, 5),
    "layout": ("single", "fused_tp", "owner"),
    "mlp": ("tp", "replicated"),
    "calibrate": (True, False),
    "tree": (None, "sequoia", "beam", "dyspec"),
    "count": (1, 4, 7),
    "batch": (1, 8),
    "ranks": (1, 2, 4),
    "arrives": ("here", "rebuild", "transfer"),
    "lanes": ("none", "cores"),
}


def makes_sense(way: Combination) -> bool:
    """Whether a combination can be had; what a method has not is at its first value."""
    layout, ranks, method = way["layout"], way["ranks"], way["method"]
    model = method in ("easyspec", "draft_model")
    return not any(
        (
            method != "easyspec" and (way["size"] != 1 or not way["calibrate"]),
            layout == "owner" and method != "easyspec",
            layout != "single" and (not model or ranks == 1),
            way["mlp"] != "tp" and layout != "owner",
            way["tree"] and method in ("ngram", "suffix"),
            way["tree"] and (not way["calibrate"] or way["count"] == 1),
            way["tree"] not in (None, "sequoia") and not model,
            way["arrives"] == "transfer" and (not model or layout != "single"),
            way["lanes"] == "cores" and (ranks != 1 or way["arrives"] != "here"),
        )
    )


def ways_to_guess() -> list[Combination]:
    """Ways in which every two choices meet."""
    return covering_array(FACTORS, makes_sense)


def name_of(way: Combination) -> str:
    """For the report of a test."""
    return " ".join(f"{value}" for value in way.values())


def speculation_of(way: Combination, model: Path) -> SpeculativeConfig:
    """The configuration of a way; a drafter with a model has the target's."""
    method, layout, ranks = way["method"], way["layout"], way["ranks"]
    given: dict[str, object] = {
        "method": method,
        "num_speculative_tokens": way["count"],
        "adaptive": False,
    }
    if way["tree"]:
        given["tree"] = {"type": way["tree"], "width": 3, "depth": 3}
    if method in ("easyspec", "draft_model"):
        given["model"] = str(model)
        given["draft_kv"] = "rebuild" if way["arrives"] == "here" else way["arrives"]
    if method == "draft_model" and layout == "fused_tp":
        given["draft_tensor_parallel_size"] = ranks
    if method == "easyspec":
        given["layer_parallel"] = {key: way[key] for key in ("size", "layout", "mlp", "calibrate")}
    return SpeculativeConfig.parse(given)
