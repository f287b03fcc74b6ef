"""The ways to guess that are compared: drafters over one loaded drafting model, and without one."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.speculating.serving import Arm
from twinflow.parallel.ranks.base import OneRank
from twinflow.runtime.engine_plan import EngineOptions, EnginePlan, plan_engine
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.runner_loading import load_runner
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.drafters.base import Drafter
from twinflow.runtime.speculative.drafters.draft_model import DraftModelDrafter
from twinflow.runtime.speculative.drafters.draft_trees import TreeModelDrafter
from twinflow.runtime.speculative.drafters.registry import DrafterSetup, create_drafter
from twinflow.runtime.speculative.goodput.setup import create_goodput
from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan
from twinflow.runtime.speculative.trees.config import TreeConfig

NONE = "none"
SEQUENTIAL = "draft_model"
RECYCLING_TREE = "token_recycling tree"
CONTROLLED = " controlled"
_WITHOUT_MODEL = ("ngram", "suffix", "token_recycling")
# Nodes, and shape, of trees that cost a look-up, and of those that cost a pass for each level.
_FREE_NODES, _FREE_TREE = 24, TreeConfig(type="sequoia", width=8, depth=6)
_NODES, _WIDTH, _DEPTH = 10, 3, 4
_SIZES = range(2, 6)
_TREES = {
    f"{drafter} {shape}": (drafter, TreeConfig(type=shape, width=_WIDTH, depth=_DEPTH))
    for drafter in (SEQUENTIAL, "easyspec N=2")
    for shape in ("sequoia", "beam", "dyspec")
}
_CONTROLLED = (SEQUENTIAL, f"{SEQUENTIAL} sequoia", "ngram", RECYCLING_TREE)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on one rank.

    Attributes:
        plan: what it is.
        runner: its weights and KV.
    """

    plan: EnginePlan
    runner: ModelRunner

    @classmethod
    def load(cls, model: Path, *, blocks: int, rows: int, context: int) -> "Loaded":
        """Load a model.

        Args:
            model: directory.
            blocks: KV blocks.
            rows: of a step.
            context: longest sequence.
        """
        options = EngineOptions(
            model=model, num_kv_blocks=blocks, max_num_batched_tokens=rows, max_model_len=context
        )
        plan = plan_engine(options, OneRank())
        return cls(plan, load_runner(plan, OneRank()))


def arm_names() -> list[str]:
    """Every arm, the one without proposals first."""
    grouped = [f"easyspec N={n}{tail}" for n in _SIZES for tail in ("", " uncalibrated")]
    controlled = [name + CONTROLLED for name in _CONTROLLED]
    names = [NONE, SEQUENTIAL, *grouped, *_WITHOUT_MODEL, RECYCLING_TREE, *_TREES]
    return [*names, *controlled]


def most_tokens(name: str, count: int) -> int:
    """Tokens that an arm proposes at most, where chains have `count`."""
    name = name.removesuffix(CONTROLLED)
    if name == RECYCLING_TREE:
        return _FREE_NODES
    return _NODES if name in _TREES else count


def make_arm(name: str, count: int, drafting: Loaded) -> Arm:
    """An arm whose drafter knows nothing yet.

    Args:
        name: of the arm.
        count: tokens of a chain.
        drafting: the model that drafts; used by one arm at a time.
    """
    most, base = most_tokens(name, count), name.removesuffix(CONTROLLED)
    config = _config(base, most)
    controlled = create_goodput(config) if name != base else None
    return Arm(name, most, _drafter(base, config, drafting), controlled)


def _config(name: str, most: int) -> SpeculativeConfig | None:
    """What an operator would choose for an arm."""
    if name == NONE:
        return None
    if name == RECYCLING_TREE:
        return SpeculativeConfig(
            method="token_recycling", num_speculative_tokens=most, tree=_FREE_TREE
        )
    if name in _WITHOUT_MODEL:
        return SpeculativeConfig(method=name, num_speculative_tokens=most)
    _, tree = _TREES.get(name, (name, None))
    return SpeculativeConfig(
        method="draft_model", model="loaded already", num_speculative_tokens=most, tree=tree
    )


def _drafter(name: str, config: SpeculativeConfig | None, drafting: Loaded) -> Drafter | None:
    if config is None:
        return None
    model = drafting.plan.model
    if config.method != "draft_model":
        return create_drafter(DrafterSetup(config, model.vocab_size, _refuse))
    drafter, _ = _TREES.get(name, (name, None))
    size = 1 if drafter == SEQUENTIAL else int(drafter.split("=")[1].split()[0])
    plan = LayerPlan.uniform(model.num_layers, size)
    sampler, max_rows = Sampler(model.vocab_size), drafting.plan.config.max_num_batched_tokens
    if config.tree is not None:
        return TreeModelDrafter(
            drafting.runner,
            sampler,
            config.tree,
            vocab_size=model.vocab_size,
            max_rows=max_rows,
            plan=plan,
        )
    return DraftModelDrafter(
        drafting.runner,
        sampler,
        vocab_size=model.vocab_size,
        max_rows=max_rows,
        plan=plan,
        calibrate="uncalibrated" not in name,
    )


def _refuse(config: SpeculativeConfig) -> Drafter:
    raise ValueError(f"{config.method} needs no model")
