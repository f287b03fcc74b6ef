"""Transforms in files: what comes back, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.support.latent_moments import random_moments

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.transforms.file import StoredTransform, TransformCard
from twinflow.parallel.latent.transforms.fitting import fit_transform
from twinflow.parallel.latent.transforms.registry import create_transform_kind, transform_kinds
from twinflow.protos.errors import CheckpointError, ConfigError


def stored(kind: str = "joint", common: int = 4, exact: tuple[int, ...] = ()) -> StoredTransform:
    scheme = LatentScheme(kind="tpla", shards=2, common=common, exact_layers=exact)
    moments = [random_moments(16, seed) for seed in range(2)]
    transform = fit_transform(create_transform_kind(kind), moments, scheme)
    card = TransformCard(
        model="abc",
        kind=kind,
        shards=2,
        common=common,
        layers=2,
        width=16,
        exact_layers=exact,
    )
    return StoredTransform(card, transform)


@pytest.mark.parametrize("kind", transform_kinds())
def test_what_was_written_comes_back(tmp_path: Path, kind: str) -> None:
    written = stored(kind)
    path = tmp_path / written.name.file_name(2)
    written.write(path)
    assert path.name == f"{kind}+4-2.safetensors" and list(tmp_path.iterdir()) == [path]
    found = StoredTransform.read(path)
    assert (found.card, found.transform.id) == (written.card, written.transform.id)
    assert found.scheme == LatentScheme(kind="tpla", shards=2, common=4, basis=written.transform.id)
    for layer in range(2):
        ours, theirs = written.transform.basis(layer), found.transform.basis(layer)
        assert torch.equal(ours.matrix, theirs.matrix)
        assert torch.equal(ours.inverse, theirs.inverse)
        assert ours.orthogonal == theirs.orthogonal
        assert [ours.logit_factor(shard) for shard in range(2)] == [
            theirs.logit_factor(shard) for shard in range(2)
        ]
    found.check_shape(path, num_layers=2, kv_rank=16, shards=2)
    found.check_model(path, "abc")


@pytest.mark.parametrize("kind", ["none", "joint"])
def test_exact_layers_come_back_and_have_no_factors(tmp_path: Path, kind: str) -> None:
    written = stored(kind, exact=(1,))
    path = tmp_path / written.name.file_name(2)
    written.write(path)
    assert path.name == f"{kind}+4-exact1-2.safetensors"
    found = StoredTransform.read(path)
    assert (found.card.exact_layers, found.scheme.exact_layers) == ((1,), (1,))
    factors = [[found.transform.basis(at).logit_factor(j) for j in (0, 1)] for at in (0, 1)]
    assert factors[1] == [1.0, 1.0]
    assert (factors[0] != [1.0, 1.0]) == (kind == "none")


def test_another_model_or_deployment_is_refused(tmp_path: Path) -> None:
    path, found = tmp_path / "t.safetensors", stored()
    for change, message in (
        ({"num_layers": 3}, "made for 2 layers, this deployment has 3"),
        ({"kv_rank": 32}, "made for 16 latent columns, this deployment has 32"),
        ({"shards": 4}, "made for 2 shards, this deployment has 4"),
    ):
        wanted = {"num_layers": 2, "kv_rank": 16, "shards": 2} | change
        with pytest.raises(ConfigError, match=message):
            found.check_shape(path, **wanted)
    with pytest.raises(ConfigError, match="fingerprint abc, this one has def"):
        found.check_model(path, "def")


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    stored("pca").write(path)
    data = bytearray(path.read_bytes())
    for place in (len(data) - 1, len(data) - 8 * 16 * 16, len(data) - 2000):
        changed = data.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="is damaged"):
            StoredTransform.read(path)


def test_files_that_are_no_transform_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(CheckpointError, match="no such transform"):
        StoredTransform.read(path)
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        StoredTransform.read(tmp_path)
    stored().write(path)
    whole = path.read_bytes()
    for data in (b"", b"hello, world", whole[:-10], whole[:100]):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="is no safetensors file"):
            StoredTransform.read(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="is no transform of latents"):
        StoredTransform.read(path)


@pytest.mark.parametrize(
    "card",
    [
        replace(stored().card, layers=3),
        replace(stored().card, layers=1),
        replace(stored().card, width=8),
        replace(stored().card, kind="pca"),
        replace(stored().card, exact_layers=(2,)),
        replace(stored().card, exact_layers=(1, 0)),
    ],
)
def test_a_card_that_promises_something_else_is_refused(
    tmp_path: Path, card: TransformCard
) -> None:
    path = tmp_path / "t.safetensors"
    StoredTransform(card, stored().transform).write(path)
    with pytest.raises(CheckpointError, match="is damaged"):
        StoredTransform.read(path)


def test_a_card_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    stored().write(path)
    data = path.read_bytes()
    assert data.count(b'"common":"4"') == 1
    path.write_bytes(data.replace(b'"common":"4"', b'"common":"2"'))
    with pytest.raises(CheckpointError, match="card has another digest"):
        StoredTransform.read(path)


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        stored().write(tmp_path / "missing" / "t.safetensors")
    assert not list(tmp_path.iterdir())
