"""How a worker takes part in latent attention: what the options come down to, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.latent_models import latent_config
from tests.support.tiny_models import tiny_config

from twinflow.parallel.latent.sharing.dcp import ContextParallel
from twinflow.parallel.latent.sharing.replicated import Replicated
from twinflow.parallel.latent.sharing.tpla import TensorParallelLatent
from twinflow.parallel.latent.transforms.file import StoredTransform, TransformCard
from twinflow.parallel.latent.transforms.fitting import plain_transform
from twinflow.parallel.latent.transforms.hadamard import Hadamard
from twinflow.parallel.ranks.base import Seat
from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.latent_setup import LatentOptions, LatentSetup, settle_latents

MODEL = latent_config()  # latents of 32 columns


def settle(**options: Any) -> LatentSetup:
    setup = settle_latents(LatentOptions(**options), MODEL)
    assert setup is not None
    return setup


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    """Writes the file of a transform; arguments are fields of its card."""

    def write(**changes: Any) -> Path:
        card = TransformCard(
            model="weights", kind="hadamard", shards=2, common=8, layers=2, width=32
        )
        card = replace(card, **changes)
        path = tmp_path / "joint+8-2.safetensors"
        StoredTransform(card, plain_transform(Hadamard(), card.layers, card.width)).write(path)
        return path

    return write


@pytest.mark.parametrize(
    ("parallel", "shards", "sharing"),
    [
        ("replicated", 1, Replicated),
        ("dcp", 2, ContextParallel),
        ("dcp", 4, ContextParallel),
        ("tpla", 1, TensorParallelLatent),
        ("tpla", 2, TensorParallelLatent),
        ("tpla", 4, TensorParallelLatent),
    ],
)
def test_each_rank_has_its_part(parallel: str, shards: int, sharing: type) -> None:
    setup = settle(parallel=parallel, shards=shards)
    plans = [setup.plan(Seat(rank, 4)) for rank in range(4)]
    assert all(type(plan.sharing) is sharing for plan in plans)
    assert [plan.sharing.shards.rank for plan in plans] == [rank % shards for rank in range(4)]
    assert setup.scheme.meaning == f"latents/{parallel}/{shards}/0/none/-"


@pytest.mark.parametrize("parallel", ["dcp", "tpla"])
def test_a_prefill_worker_holds_all_in_the_same_scheme(parallel: str) -> None:
    """Whatever number of ranks it has."""
    decode = settle(parallel=parallel, shards=4)
    prefill = settle(parallel=parallel, shards=4, hold_all=True)
    assert prefill.scheme == decode.scheme
    for size in (1, 3):
        for rank in range(size):
            sharing = prefill.plan(Seat(rank, size)).sharing
            assert isinstance(sharing, Replicated)
            assert [c for held in sharing.columns(32) for c in held] == list(range(32))
            assert sharing.block_share(16).size == 1


def test_hadamard_needs_no_file() -> None:
    setup = settle(parallel="tpla", shards=2, transform="hadamard")
    assert setup.transform is not None
    assert len(setup.transform) == MODEL.num_layers
    assert setup.scheme.basis == setup.transform.id
    assert setup.plan(Seat(1, 2)).transform is setup.transform


def test_a_file_says_what_all_shards_hold(stored: Callable[..., Path]) -> None:
    setup = settle(parallel="tpla", shards=2, transform=str(stored()))
    assert (setup.scheme.common, setup.scheme.shards) == (8, 2)
    assert setup.plan(Seat(1, 2)).sharing.columns(32) == [range(8), range(20, 32)]
    setup.check_model("weights")
    with pytest.raises(ConfigError, match=r"joint\+8-2.*fingerprint weights, this one has others"):
        setup.check_model("others")


def test_models_without_latents_have_nothing_to_settle() -> None:
    plain = tiny_config()
    assert settle_latents(LatentOptions(), plain) is None
    assert settle_latents(LatentOptions(hold_all=True), plain) is None
    with pytest.raises(ConfigError, match="--mla-parallel dcp: LlamaForCausalLM has no latent"):
        settle_latents(LatentOptions(parallel="dcp", shards=2), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": 2}, "--mla-shards 2: only --mla-parallel dcp and tpla have shards"),
        ({"parallel": "dcp", "shards": 0}, "--mla-shards 0: must be at least 1"),
        (
            {"parallel": "dcp", "shards": 2, "transform": "hadamard"},
            "--tpla-transform hadamard: only --mla-parallel tpla transforms latents",
        ),
        ({"parallel": "tpla", "shards": 3}, "--mla-shards 3: latents of 32 columns cannot be cut"),
        ({"parallel": "tpla", "transform": "joint"}, "twinflow calibrate tpla MODEL"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settle(**options)


@pytest.mark.parametrize("parallel", ["dcp", "tpla"])
def test_shards_must_divide_the_ranks(parallel: str) -> None:
    setup = settle(parallel=parallel, shards=2)
    with pytest.raises(ConfigError, match=r"--mla-shards 2: must divide.* is 3; see --tens"):
        setup.plan(Seat(0, 3))


def test_files_that_do_not_fit_are_refused(stored: Callable[..., Path], tmp_path: Path) -> None:
    for changes, message in (
        ({"layers": 3}, "made for 3 layers, this deployment has 2"),
        ({"width": 64}, "made for 64 latent columns, this deployment has 32"),
        ({"shards": 4}, "made for 4 shards, this deployment has 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            settle(parallel="tpla", shards=2, transform=str(stored(**changes)))
    with pytest.raises(CheckpointError, match="missing: no such transform"):
        settle(parallel="tpla", shards=2, transform=str(tmp_path / "missing"))
