"""How a drafter is spread over the ranks of a worker: what rank 0 tells the others to load."""

from dataclasses import dataclass
from typing import Literal

from twinflow.protos.errors import ConfigError
from twinflow.runtime.speculative.config import EASYSPEC, SpeculativeConfig
from twinflow.runtime.speculative.layer_parallel.config import AUTO, Layout


@dataclass(frozen=True, slots=True)
class DraftShare:
    """A layout.

    Attributes:
        layout: how layers are cut; `single` leaves the drafter to rank 0.
        mlp: with `owner`, how MLPs and vocabulary are placed.
        ranks: that draft together. With more than these in the worker, each group of neighbours
            drafts for itself, and rank 0 listens to its own.
    """

    layout: Layout = "single"
    mlp: Literal["tp", "replicated"] = "tp"
    ranks: int = 1

    def __str__(self) -> str:
        if self.layout == "single":
            return "single"
        rest = f" with {self.mlp} MLPs" if self.layout == "owner" else ""
        return f"{self.layout}{rest} on {self.ranks} ranks"


SINGLE = DraftShare()


def possible_shares(config: SpeculativeConfig, ranks: int) -> list[DraftShare]:
    """The layouts that an operator leaves open; one if nothing is to be chosen.

    Args:
        config: of a method with a model.
        ranks: of the worker.

    Raises:
        ConfigError: the ranks cannot draft in groups of the wanted size.
    """
    wanted, options = config.draft_tensor_parallel_size, config.layer_parallel
    if config.method != EASYSPEC:
        return [_share("fused_tp", wanted or 1, ranks)]
    if options.layout == AUTO:
        size = wanted or ranks
        found = [_share(name, size, ranks, options.mlp) for name in _SEVERAL]
        return list(dict.fromkeys(([SINGLE] if wanted is None else []) + found))
    return [_share(options.layout, wanted or ranks, ranks, options.mlp)]


_SEVERAL: tuple[Layout, ...] = ("fused_tp", "owner")


def _share(
    layout: Layout, size: int, ranks: int, mlp: Literal["tp", "replicated"] = "tp"
) -> DraftShare:
    if ranks % size:
        raise ConfigError(
            f"--speculative-config: draft_tensor_parallel_size is {size}, which does not divide "
            f"the {ranks} ranks of a worker"
        )
    if size == 1 or layout == "single":
        return SINGLE
    return DraftShare(layout, mlp if layout == "owner" else "tp", size)
