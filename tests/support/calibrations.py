"""A tiny model with latent attention and a text, and what a calibration of them gives."""

from pathlib import Path
from typing import Any

from tests.support.checkpoints import VOCAB_SIZE, write_checkpoint
from tests.support.latent_models import latent_config
from tests.support.latent_moments import random_moments
from tests.support.tiny_models import tiny_state_dict
from torch import Tensor

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.transforms.file import StoredTransform, TransformCard
from twinflow.parallel.latent.transforms.fitting import fit_transform
from twinflow.parallel.latent.transforms.registry import create_transform_kind
from twinflow.runtime.calibration.corpus import Corpus
from twinflow.runtime.calibration.options import CalibrationOptions
from twinflow.runtime.calibration.report import QualityReport, QualityRow
from twinflow.runtime.calibration.subject import Subject
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.text.tokenizer import Tokenizer

TEXT = "the quick brown fox, 12 dogs; hello world of latents and of heads! " * 12


def tiny_latent_config() -> ModelConfig:
    """Two dense layers, eight heads, latents of 32 columns, a vocabulary of bytes."""
    return latent_config(vocab_size=VOCAB_SIZE)


def tiny_state() -> dict[str, Tensor]:
    """The weights of `calibrated`'s model."""
    return tiny_state_dict(tiny_latent_config())


def calibration(folder: Path, **changes: Any) -> CalibrationOptions:
    """A model and a text in `folder`, and options for windows of 32 tokens."""
    model = write_checkpoint(folder / "model", tiny_latent_config())
    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    settings: dict[str, Any] = {"window": 32, "tokens": 400, "shards": (2,)}
    return CalibrationOptions(model=model, text=text, **(settings | changes))


def opened(options: CalibrationOptions) -> tuple[Subject, Corpus]:
    """The model and the text of a calibration."""
    subject = Subject.open(options)
    corpus = Corpus.read(
        options.text,
        Tokenizer.load(options.model),
        tokens=options.tokens,
        window=options.window,
        columns=subject.latent.kv_rank,
    )
    return subject, corpus


def quality_row(transform: str = "joint", shards: int = 2, **changes: Any) -> QualityRow:
    """A row; `changes` are its fields."""
    settings: dict[str, Any] = {
        "transform": transform,
        "shards": shards,
        "file": f"{transform}-{shards}.safetensors",
        "id": f"{transform}-0123456789ab",
        "elements": 24,
        "delta_nll_per_token": 0.0125,
        "delta_nll_per_byte": 0.004,
        "error_per_byte": 0.001,
        "agreement": 0.97,
        "kl_per_token": 0.002,
    }
    return QualityRow(**(settings | changes))


def quality_report(*rows: QualityRow, **changes: Any) -> QualityReport:
    """A report of some rows; `changes` are its fields."""
    settings: dict[str, Any] = {
        "model": "abc",
        "dtype": "float32",
        "text": "book.txt",
        "text_digest": "0" * 64,
        "calibration_tokens": 1000,
        "scored_tokens": 500,
        "scored_bytes": 1800,
        "window": 512,
        "prompt": 256,
        "elements": 40,
        "nll_per_token": 3.0,
        "nll_per_byte": 0.83,
    }
    return QualityReport(rows=rows, **(settings | changes))


def measured_model(folder: Path, common: int = 4) -> Path:
    """A folder as a model's, with one transform for two shards and its report."""
    scheme = LatentScheme(kind="tpla", shards=2, common=common)
    transform = fit_transform(create_transform_kind("joint"), [random_moments(16)], scheme)
    card = TransformCard(model="abc", kind="joint", shards=2, common=common, layers=1, width=16)
    (folder / "tpla").mkdir(parents=True)
    stored = StoredTransform(card, transform)
    name = str(stored.name)
    stored.write(folder / "tpla" / stored.name.file_name(2))
    quality_report(quality_row(name, 2, id=stored.id)).write(folder / "tpla")
    return folder
