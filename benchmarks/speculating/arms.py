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
from twinflow.runtime.speculative.drafters.registry import DrafterSetup, create_drafter
from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan
from twinflow.runtime.speculative.trees.config import TreeConfig

NONE = "none"
SEQUENTIAL = "draft_model"
RECYCLING_TREE = "token_recycling tree"
_WITHOUT_MODEL = ("ngram", "suffix", "token_recycling")
_TREE_NODES = 24
_SIZES = range(2, 6)


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
    return [NONE, SEQUENTIAL, *grouped, *_WITHOUT_MODEL, RECYCLING_TREE]


def most_tokens(name: str, count: int) -> int:
    """Tokens that an arm proposes at most, where chains have `count`."""
    return _TREE_NODES if name == RECYCLING_TREE else count


def make_arm(name: str, count: int, drafting: Loaded) -> Arm:
    """An arm whose drafter knows nothing yet.

    Args:
        name: of the arm.
        count: tokens of a chain.
        drafting: the model that drafts; used by one arm at a time.
    """
    return Arm(name, most_tokens(name, count), _drafter(name, count, drafting))


def _drafter(name: str, count: int, drafting: Loaded) -> Drafter | None:
    if name == NONE:
        return None
    model = drafting.plan.model
    if name == RECYCLING_TREE:
        config = SpeculativeConfig(
            method="token_recycling",
            num_speculative_tokens=_TREE_NODES,
            tree=TreeConfig(type="sequoia"),
        )
        return create_drafter(DrafterSetup(config, model.vocab_size, _refuse))
    if name in _WITHOUT_MODEL:
        config = SpeculativeConfig(method=name, num_speculative_tokens=count)
        return create_drafter(DrafterSetup(config, model.vocab_size, _refuse))
    size = 1 if name == SEQUENTIAL else int(name.split("=")[1].split()[0])
    return DraftModelDrafter(
        drafting.runner,
        Sampler(model.vocab_size),
        vocab_size=model.vocab_size,
        max_rows=drafting.plan.config.max_num_batched_tokens,
        plan=LayerPlan.uniform(model.num_layers, size),
        calibrate="uncalibrated" not in name,
    )


def _refuse(config: SpeculativeConfig) -> Drafter:
    raise ValueError(f"{config.method} needs no model")
