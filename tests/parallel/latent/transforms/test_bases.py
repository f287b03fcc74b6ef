"""Bases: what each kind promises, and that nothing changes as long as all columns are used."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.latent_moments import (
    random_latents,
    random_moments,
    random_queries,
    random_values,
)
from torch import Tensor

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.transforms.basis import LatentBasis, LatentTransform
from twinflow.parallel.latent.transforms.factors import fit_logit_factors
from twinflow.parallel.latent.transforms.fitting import fit_transform, plain_transform
from twinflow.parallel.latent.transforms.moments import LatentMoments, MomentSums
from twinflow.parallel.latent.transforms.name import TransformName
from twinflow.parallel.latent.transforms.plain import PLAIN_KINDS
from twinflow.parallel.latent.transforms.registry import (
    create_transform_kind,
    register_transform_kind,
    transform_kinds,
)
from twinflow.protos.errors import ConfigError

ORTHOGONAL = ("none", "hadamard", "pca")
WIDTHS = st.sampled_from([4, 8, 16, 32])
SEEDS = st.integers(0, 1000)


def basis_of(kind: str, width: int, seed: int = 0, layer: int = 0) -> LatentBasis:
    return create_transform_kind(kind).basis(layer, width, random_moments(width, seed))


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@settings(deadline=None, max_examples=20)
@given(kind=st.sampled_from(transform_kinds()), width=WIDTHS, seed=SEEDS)
def test_scores_and_values_do_not_change_in_another_basis(kind: str, width: int, seed: int) -> None:
    basis = basis_of(kind, width, seed)
    latents, readers = random_latents(width, seed, tokens=32), random_values(width, seed)
    transformed = (latents @ basis.matrix) @ (readers @ basis.inverse.mT).mT
    assert distance(transformed, latents @ readers.mT) < 1e-10


@settings(deadline=None, max_examples=20)
@given(kind=st.sampled_from(ORTHOGONAL), width=WIDTHS, seed=SEEDS)
def test_orthogonal_bases_commute_with_the_norm(kind: str, width: int, seed: int) -> None:
    basis = basis_of(kind, width, seed)
    assert basis.orthogonal
    raw = 7 * random_latents(width, seed + 1, tokens=32)

    def normed(rows: Tensor) -> Tensor:
        return rows * torch.rsqrt(rows.pow(2).mean(1, keepdim=True) + 1e-6)

    assert distance(normed(raw @ basis.matrix), normed(raw) @ basis.matrix) < 1e-12


@pytest.mark.parametrize("kind", transform_kinds())
def test_folding_into_the_weights_equals_applying(kind: str) -> None:
    """W diag(gain) A⁻ᵀ read from z equals W read from gain * c."""
    basis, gain = basis_of(kind, 16), torch.rand(16, dtype=torch.float64) + 0.5
    latents, weight = random_latents(16, tokens=8), random_values(16)
    folded = weight * gain @ basis.inverse.mT
    assert distance(latents @ basis.matrix @ folded.mT, latents * gain @ weight.mT) < 1e-12


def test_principal_components_are_uncorrelated_and_fall() -> None:
    moments = random_moments(16)
    basis = basis_of("pca", 16)
    found = basis.matrix.mT @ moments.covariance @ basis.matrix
    variances = found.diagonal()
    assert (variances.diff() <= 0).all() and variances[0] > 3 * variances[8]
    assert (found - torch.diag(variances)).abs().max() < 1e-12 * float(variances[0])


def test_the_joint_basis_sorts_by_what_is_read() -> None:
    """A direction that varies most but that nobody reads comes last."""
    moments = random_moments(8)
    covariance = torch.diag(torch.tensor([100.0, *[1.0] * 7], dtype=torch.float64))
    deaf = torch.diag(torch.tensor([0.0, *range(7, 0, -1)], dtype=torch.float64))
    moments = replace(moments, covariance=covariance, queries=deaf, values=deaf)
    kind = create_transform_kind("joint")
    basis = kind.basis(0, 8, moments)
    assert not basis.orthogonal
    assert basis.matrix[0, :-1].abs().max() < 1e-6 * float(basis.matrix.abs().max())
    transformed = basis.matrix.mT @ covariance @ basis.matrix
    assert (transformed.diagonal().diff() <= 0).all()
    assert (transformed - torch.diag(transformed.diagonal())).abs().max() < 1e-12
    pca = create_transform_kind("pca").basis(0, 8, moments)
    assert pca.matrix[0, 0] == pytest.approx(1.0)


def test_values_count_less_for_scores() -> None:
    """One direction is read by queries; the other, which varies more, by values alone."""
    scores, values = torch.zeros(2, 2), torch.zeros(2, 2)
    scores[0, 0], values[1, 1] = 1.0, 2.0
    covariance = torch.diag(torch.tensor([1.0, 1.5], dtype=torch.float64))
    moments = LatentMoments(9, covariance, scores.double(), values.double())
    first = {
        kind: int(create_transform_kind(kind).basis(0, 2, moments).matrix[:, 0].abs().argmax())
        for kind in ("pca", "scores")
    }
    assert first == {"pca": 1, "scores": 0}


def test_hadamard_spreads_every_column_and_differs_between_layers() -> None:
    first, second = basis_of("hadamard", 32), basis_of("hadamard", 32, layer=1)
    assert torch.allclose(first.matrix.abs(), torch.full_like(first.matrix, 32**-0.5))
    assert not torch.equal(first.matrix, second.matrix)
    with pytest.raises(ConfigError, match="power of two of columns, not 24"):
        create_transform_kind("hadamard").basis(0, 24, None)


@pytest.mark.parametrize("kind", sorted(set(transform_kinds()) - set(PLAIN_KINDS)))
def test_what_is_calibrated_cannot_be_had_without(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind} is made from .* calibrate tpla"):
        plain_transform(create_transform_kind(kind), 2, 16)


@pytest.mark.parametrize("kind", PLAIN_KINDS)
def test_what_needs_no_calibration_can_be_had_without(kind: str) -> None:
    assert len(plain_transform(create_transform_kind(kind), 2, 16)) == 2


def test_factors_are_the_least_squares_fit() -> None:
    """Against queries and latents themselves, all pairs of them."""
    scheme = LatentScheme(kind="tpla", shards=2, common=4)
    moments, basis = random_moments(16), basis_of("none", 16)
    latents, queries = random_latents(16), random_queries(16).flatten(0, 1)
    latents = latents - latents.mean(0)
    exact = (queries @ latents.mT).flatten()
    for shard, factor in enumerate(fit_logit_factors(basis, moments, scheme)):
        first = 4 + 6 * shard
        seen = [*range(4), *range(first, first + 6)]
        part = (queries[:, seen] @ latents[:, seen].mT).flatten()
        assert factor == pytest.approx(float(exact @ part / (part @ part)), rel=1e-9)


def test_factors_are_one_where_shards_are_uncorrelated_or_alone() -> None:
    scheme = LatentScheme(kind="tpla", shards=4)
    moments = random_moments(16)
    isotropic = replace(moments, queries=torch.eye(16, dtype=torch.float64))
    factors = fit_logit_factors(basis_of("pca", 16), isotropic, scheme)
    assert factors == pytest.approx((1.0,) * 4)
    hadamard = create_transform_kind("hadamard")
    one = fit_transform(hadamard, [moments], LatentScheme(kind="tpla", shards=1))
    assert one.basis(0).logit_factor(0) == 1.0
    four = fit_transform(hadamard, [moments], scheme)
    assert len(four.basis(0).logit_factors) == 4 and four.basis(0).logit_factor(3) != 1.0
    assert (
        fit_transform(create_transform_kind("joint"), [moments], scheme).basis(0).logit_factors
        == ()
    )


def test_ids_tell_transforms_apart_and_are_stable() -> None:
    bases = [basis_of("pca", 8, seed) for seed in range(2)]
    transform = LatentTransform("pca", bases)
    again = LatentTransform("pca", [basis_of("pca", 8, seed) for seed in range(2)])
    assert transform.id == again.id and transform.id.startswith("pca-")
    turned = bases[1].matrix.clone()
    turned[:, 0] *= -1
    others = [
        LatentTransform("joint", bases),
        LatentTransform("pca", bases[:1]),
        LatentTransform("pca", [bases[0], replace(bases[1], logit_factors=(1.0, 1.5))]),
        LatentTransform("pca", [bases[0], LatentBasis.of_orthogonal(turned)]),
    ]
    assert len({transform.id, *(other.id for other in others)}) == 5
    plain = plain_transform(create_transform_kind("hadamard"), 3, 16)
    assert plain.id == "hadamard-525060379515"  # the same on every machine, now and later


@settings(deadline=None, max_examples=25)
@given(kind=st.sampled_from(["pca", "joint"]), place=st.integers(0, 8 * 16 * 16 - 1))
def test_every_byte_is_part_of_the_id(kind: str, place: int) -> None:
    basis = basis_of(kind, 16)
    before = LatentTransform(kind, [basis]).id
    flat = basis.matrix.view(torch.uint8).view(-1)
    # The lowest bit of some byte: a basis is not checked again, so that its id alone can tell.
    flat[place] ^= 1
    assert LatentTransform(kind, [basis]).id != before


@pytest.mark.parametrize(
    ("matrix", "inverse", "orthogonal", "message"),
    [
        (torch.eye(4), torch.eye(3), True, "have the shapes"),
        (2 * torch.eye(4), torch.eye(4), False, "misses the identity by 1.0e\\+00"),
        (torch.full((4, 4), torch.nan), torch.eye(4), False, "misses the identity by nan"),
        (2 * torch.eye(4), torch.eye(4) / 2, True, "is not its transpose"),
    ],
)
def test_matrices_that_are_no_basis_are_refused(
    matrix: Tensor, inverse: Tensor, orthogonal: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LatentBasis(matrix, inverse, orthogonal)


def test_sums_over_pieces_give_the_moments_of_the_whole() -> None:
    whole = random_moments(8)
    sums = MomentSums(8, torch.device("cpu"))
    latents, queries = random_latents(8), random_queries(8)
    for piece in torch.split(latents, 100):
        sums.add_latents(piece.float())
    for piece in torch.split(queries, 77):
        sums.add_queries(piece.float())
    found = sums.finish(random_values(8))
    assert found.tokens == 512
    for name in ("covariance", "queries", "values"):
        assert distance(getattr(found, name), getattr(whole, name)) < 1e-5
    with pytest.raises(ValueError, match="no latents"):
        MomentSums(8, torch.device("cpu")).finish(random_values(8))
    with pytest.raises(ValueError, match="not finite"):
        LatentMoments(1, whole.covariance * torch.nan, whole.queries, whole.values)


def test_names_and_registry() -> None:
    assert transform_kinds() == ("none", "hadamard", "pca", "joint", "scores")
    with pytest.raises(ConfigError, match="'svd': unknown; choose one of none, hadamard"):
        create_transform_kind("svd")
    with pytest.raises(ValueError, match="already registered"):
        register_transform_kind("pca", lambda: create_transform_kind("pca"))
    assert TransformName.parse("joint+64") == TransformName("joint", 64)
    assert str(TransformName.parse("joint+0")) == "joint"
    assert TransformName("joint", 64).file_name(2) == "joint+64-2.safetensors"
    both = TransformName("scores", 8, 2)
    assert TransformName.parse("scores+8-exact2") == both
    assert both.file_name(4) == "scores+8-exact2-4.safetensors"
    assert TransformName.parse("joint-exact1") == TransformName("joint", exact=1)
    assert str(TransformName.parse("joint-exact0")) == "joint"
    for wrong in ("", "joint+", "joint+-1", "joint+1.5", "a b", "../x", "joint-exact", "+8"):
        with pytest.raises(ConfigError, match="expected a kind such as joint"):
            TransformName.parse(wrong)
