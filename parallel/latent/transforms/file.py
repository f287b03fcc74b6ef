"""A transform in a file: safetensors with a card that says which model and scheme it is for.

    layers.I.matrix     float64 [C, C]
    layers.I.inverse    float64 [C, C], absent if the basis is orthogonal
    logit_factors       float64 [layers, shards], absent if all are 1

The transform's id and the digest of the card are computed anew from what was read: a file of which
a byte has changed is refused. Whether the transform is any good is not known here.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.transforms.basis import LatentBasis, LatentTransform
from twinflow.parallel.latent.transforms.name import TransformName, file_id
from twinflow.parallel.whole_file import write_whole
from twinflow.protos.errors import CheckpointError, ConfigError

_FORMAT = "twinflow-latent-transform-2"
_FACTORS = "logit_factors"
_NO_LAYERS = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformCard:
    """What a transform is for.

    Attributes:
        model: fingerprint of the checkpoint.
        kind: how the bases were found.
        shards: that the factors are for.
        common: leading columns that all shards hold.
        layers: of the model.
        width: columns of a latent.
        exact_layers: in which shards add up their scores, in rising order.
    """

    model: str
    kind: str
    shards: int
    common: int
    layers: int
    width: int
    exact_layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredTransform:
    """A transform and its card.

    Attributes:
        card: what it is for.
        transform: the bases.
    """

    card: TransformCard
    transform: LatentTransform

    @property
    def name(self) -> TransformName:
        """What operators call it."""
        return TransformName(self.card.kind, self.card.common, len(self.card.exact_layers))

    @property
    def scheme(self) -> LatentScheme:
        """The scheme of decode workers that use it."""
        card = self.card
        return LatentScheme(
            kind="tpla",
            shards=card.shards,
            common=card.common,
            basis=self.transform.id,
            exact_layers=card.exact_layers,
        )

    @property
    def id(self) -> str:
        """Names the kind and, by a digest, all of the card and every byte of the bases."""
        return file_id(self._metadata())

    def _metadata(self) -> dict[str, str]:
        metadata = {name: _written(value) for name, value in asdict(self.card).items()}
        metadata |= {"format": _FORMAT, "id": self.transform.id}
        metadata["digest"] = _digest(metadata)
        return metadata

    def check_shape(self, path: Path, num_layers: int, kv_rank: int, shards: int) -> None:
        """Refuse another shape than a deployment's.

        Raises:
            ConfigError: it was made for another one; the message names the file.
        """
        card = self.card
        for what, found, wanted in (
            ("layers", card.layers, num_layers),
            ("latent columns", card.width, kv_rank),
            ("shards", card.shards, shards),
        ):
            if found != wanted:
                raise ConfigError(
                    f"{path}: was made for {found} {what}, this deployment has {wanted}; "
                    f"run twinflow calibrate tpla for it"
                )

    def check_model(self, path: Path, fingerprint: str) -> None:
        """Refuse another model than the one it was made from.

        Raises:
            ConfigError: the weights are others.
        """
        if self.card.model != fingerprint:
            raise ConfigError(
                f"{path}: was made from a model with the fingerprint {self.card.model}, this one "
                f"has {fingerprint}; run twinflow calibrate tpla for it"
            )

    def write(self, path: Path) -> None:
        """Write the file, at once or not at all.

        Raises:
            ConfigError: it cannot be written.
        """
        data = save(_tensors(self.transform, self.card.shards), metadata=self._metadata())
        write_whole(path, data)

    @classmethod
    def read(cls, path: Path) -> "StoredTransform":
        """Read a file.

        Raises:
            CheckpointError: it is missing, no transform, or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: no such transform") from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is no safetensors file: {error}") from error
        card = _card(path, metadata)
        try:
            transform = LatentTransform(card.kind, _bases(card, tensors))
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{path}: is damaged: {error}") from error
        if transform.id != metadata.get("id"):
            raise CheckpointError(
                f"{path}: is damaged: the bases are {transform.id}, the card says "
                f"{metadata.get('id')}"
            )
        return cls(card, transform)


def _tensors(transform: LatentTransform, shards: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    factors = []
    for layer in range(len(transform)):
        basis = transform.basis(layer)
        tensors[f"layers.{layer}.matrix"] = basis.matrix.double().contiguous()
        if not basis.orthogonal:
            tensors[f"layers.{layer}.inverse"] = basis.inverse.double().contiguous()
        factors.append(basis.logit_factors)
    if any(factors):
        tensors[_FACTORS] = torch.tensor(factors, dtype=torch.float64).view(len(factors), shards)
    return tensors


def _digest(metadata: Mapping[str, str]) -> str:
    fields = sorted(item for item in metadata.items() if item[0] != "digest")
    return hashlib.sha256(repr(fields).encode()).hexdigest()[:32]


def _card(path: Path, metadata: dict[str, str]) -> TransformCard:
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: is no transform of latents: its format is {metadata.get('format')!r}, "
            f"expected {_FORMAT!r}"
        )
    if metadata.get("digest") != _digest(metadata):
        raise CheckpointError(f"{path}: is damaged: its card has another digest than it says")
    values: dict[str, str | int | tuple[int, ...]] = {}
    for field in fields(TransformCard):
        text = metadata.get(field.name, "")
        try:
            values[field.name] = _read(text, field.type)
        except ValueError as error:
            raise CheckpointError(
                f"{path}: is damaged: its card has {field.name} {text!r}"
            ) from error
    card = TransformCard(**values)  # type: ignore[arg-type]  # each is of its field's type
    if any(layer >= card.layers for layer in card.exact_layers):
        raise CheckpointError(
            f"{path}: is damaged: of {card.layers} layers {card.exact_layers} are exact"
        )
    return card


def _written(value: str | int | tuple[int, ...]) -> str:
    """A field of a card as text."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or _NO_LAYERS
    return str(value)


def _read(text: str, kind: object) -> str | int | tuple[int, ...]:
    """The inverse of `_written`. Raises ValueError if it was not written so."""
    if kind is str and text:
        return text
    if kind is int:
        return _number(text)
    layers = () if text == _NO_LAYERS else tuple(map(_number, text.split(",")))
    if sorted({*layers}) != [*layers]:
        raise ValueError(f"{text!r}: layers do not rise")
    return layers


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{text!r}: no number")
    return int(text)


def _bases(card: TransformCard, tensors: dict[str, Tensor]) -> list[LatentBasis]:
    """Raises KeyError or ValueError for other tensors than the card promises."""
    factors = tensors.pop(_FACTORS, None)
    if factors is not None and factors.shape != (card.layers, card.shards):
        raise ValueError(f"{_FACTORS} has the shape {tuple(factors.shape)}")
    bases = []
    for layer in range(card.layers):
        matrix = tensors.pop(f"layers.{layer}.matrix")
        inverse = tensors.pop(f"layers.{layer}.inverse", None)
        if matrix.shape != (card.width, card.width) or matrix.dtype != torch.float64:
            raise ValueError(f"layer {layer} has {matrix.dtype} {tuple(matrix.shape)}")
        bases.append(
            LatentBasis(
                matrix=matrix,
                inverse=matrix.mT.contiguous() if inverse is None else inverse,
                orthogonal=inverse is None,
                logit_factors=() if factors is None else tuple(factors[layer].tolist()),
            )
        )
    if tensors:
        raise ValueError(f"nothing is known of {sorted(tensors)[:3]}")
    return bases
