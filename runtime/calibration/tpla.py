"""Calibrates a model for tensor-parallel latent attention: fits transforms, measures, reports."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.transforms.file import StoredTransform, TransformCard
from twinflow.parallel.latent.transforms.fitting import fit_transform
from twinflow.parallel.latent.transforms.moments import LatentMoments
from twinflow.parallel.latent.transforms.name import TransformName
from twinflow.parallel.latent.transforms.registry import create_transform_kind, transform_kinds
from twinflow.parallel.ranks.base import OneRank
from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.calibration.collecting import CalibrationProgress, collect_moments
from twinflow.runtime.calibration.corpus import Corpus
from twinflow.runtime.calibration.options import CalibrationOptions
from twinflow.runtime.calibration.ranking import measure_layers
from twinflow.runtime.calibration.report import QualityReport, QualityRow
from twinflow.runtime.calibration.scoring import (
    ExactScores,
    WindowDifference,
    score_against,
    score_exact,
)
from twinflow.runtime.calibration.subject import Subject
from twinflow.runtime.checkpoint.limits import check_memory
from twinflow.runtime.host_memory import available_memory
from twinflow.runtime.models.base import Placement
from twinflow.runtime.text.tokenizer import Tokenizer
from twinflow.runtime.weight_memory import weight_bytes

# Common columns that are measured unless transforms are named, as parts of all columns.
_COMMON = (8, 4)
_COMMON_KIND = "scores"
# And without common columns, this kind with one exact layer.
_EXACT_KIND = "joint"


def calibrate_tpla(options: CalibrationOptions, progress: CalibrationProgress) -> QualityReport:
    """Fit the transforms, measure them, and write them with their report.

    What a report in the folder says about other transforms of the model, in the same dtype, is
    kept.

    Args:
        options: what to calibrate and with what.
        progress: told a phase, how much of it is done, and how much there is.

    Raises:
        CheckpointError: the model cannot be served.
        ConfigError: the model has no latent attention, the text is too short, an option does not
            fit, or the folder cannot be written to; nothing was computed.
    """
    subject = Subject.open(options)
    variants = _variants(options, subject)
    tokenizer = Tokenizer.load(options.model)
    corpus = Corpus.read(
        options.text,
        tokenizer,
        tokens=options.tokens,
        window=options.window,
        columns=subject.latent.kv_rank,
    )
    _check_memory(subject, corpus)
    prepare_folder(options.folder)
    moments = collect_moments(subject, corpus.calibration, progress)

    def loading(done: int, total: int) -> None:
        progress("Loading the model", done, total)

    def scored(done: int, total: int) -> None:
        progress("Scoring with exact attention", done, total)

    exact = score_exact(subject, corpus, loading, scored)
    bench = _Bench(options.folder, subject, corpus, moments, exact, _text_sizes(exact, tokenizer))
    rows = [bench.measure(variant, progress) for variant in variants]
    report = _report(bench, rows)
    earlier = _earlier_report(options.folder)
    if earlier is not None:
        report = report.with_earlier(earlier)
    report.write(options.folder)
    return report


def prepare_folder(folder: Path) -> None:
    """Make the folder and see that files can be written into it.

    Raises:
        ConfigError: they cannot.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written to: {error.strerror}; name another folder with --out"
        ) from error


@dataclass(frozen=True, slots=True)
class _Variant:
    """A transform at a number of shards."""

    name: TransformName
    shards: int

    def scheme(self, exact_layers: tuple[int, ...] = ()) -> LatentScheme:
        return LatentScheme(
            kind="tpla",
            shards=self.shards,
            common=self.name.common,
            exact_layers=exact_layers,
        )


@dataclass(frozen=True, slots=True)
class _Bench:
    """What all variants are measured with; sizes are the bytes scored in each window, and layer
    costs those of variants that may differ in how many layers are exact."""

    folder: Path
    subject: Subject
    corpus: Corpus
    moments: Sequence[LatentMoments]
    exact: ExactScores
    sizes: tuple[int, ...]
    layer_costs: dict[_Variant, tuple[float, ...]] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.exact.targets))

    def measure(self, variant: _Variant, progress: CalibrationProgress) -> QualityRow:
        """Fit a transform, write it, and measure it."""
        layer_kl = self._layer_kl(variant, progress)
        costly = sorted(range(len(layer_kl)), key=lambda layer: -layer_kl[layer])
        stored = self._fit(variant, tuple(sorted(costly[: variant.name.exact])))
        file = variant.name.file_name(variant.shards)
        stored.write(self.folder / file)

        def scored(done: int, total: int) -> None:
            progress(f"Scoring {variant.name} with {variant.shards} shards", done, total)

        found = score_against(
            self.exact, self.subject, self.corpus, stored.transform, stored.scheme, scored
        )
        return self._row(stored, layer_kl, file, found)

    def _layer_kl(self, variant: _Variant, progress: CalibrationProgress) -> tuple[float, ...]:
        """What slicing each layer alone costs, if some are to be exact."""
        name = variant.name
        if name.exact == 0:
            return ()
        sliced = replace(variant, name=replace(name, exact=0))
        if sliced in self.layer_costs:
            return self.layer_costs[sliced]

        def scored(done: int, total: int) -> None:
            progress(f"Ranking the layers of {name} with {variant.shards} shards", done, total)

        kind = create_transform_kind(name.kind)
        # With every layer exact, none has factors.
        layers = tuple(range(self.subject.config.num_layers))
        bases = fit_transform(kind, self.moments, variant.scheme(layers))
        costs = measure_layers(self.subject, self.corpus, bases, variant.scheme(), scored)
        self.layer_costs[sliced] = costs
        return costs

    def _fit(self, variant: _Variant, exact_layers: tuple[int, ...]) -> StoredTransform:
        kind = create_transform_kind(variant.name.kind)
        card = TransformCard(
            model=self.subject.checkpoint.fingerprint,
            kind=kind.name,
            shards=variant.shards,
            common=variant.name.common,
            layers=self.subject.config.num_layers,
            width=self.subject.latent.kv_rank,
            exact_layers=exact_layers,
        )
        return StoredTransform(
            card, fit_transform(kind, self.moments, variant.scheme(exact_layers))
        )

    def _row(
        self,
        stored: StoredTransform,
        layer_kl: tuple[float, ...],
        file: str,
        found: Sequence[WindowDifference],
    ) -> QualityRow:
        latent, scheme = self.subject.latent, stored.scheme
        nll = sum(window.nll for window in found)
        per_byte = nll / sum(self.sizes)
        return QualityRow(
            transform=str(stored.name),
            shards=scheme.shards,
            file=file,
            id=stored.id,
            exact_layers=scheme.exact_layers,
            layer_kl=layer_kl,
            elements=scheme.common + scheme.slice_width(latent.kv_rank) + latent.rope_dim,
            delta_nll_per_token=nll / self.num_tokens,
            delta_nll_per_byte=per_byte,
            error_per_byte=_error(found, self.sizes, per_byte),
            agreement=sum(window.agreeing for window in found) / self.num_tokens,
            kl_per_token=sum(window.kl for window in found) / self.num_tokens,
        )


def _text_sizes(exact: ExactScores, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Bytes of the scored tokens of each window."""
    return tuple(
        sum(len(tokenizer.token_bytes(token)) for token in targets.tolist())
        for targets in exact.targets
    )


def _error(found: Sequence[WindowDifference], sizes: Sequence[int], per_byte: float) -> float:
    """Standard error of a ratio of sums over windows."""
    count = len(found)
    squares = sum(
        (window.nll - per_byte * size) ** 2 for window, size in zip(found, sizes, strict=True)
    )
    return math.sqrt(squares * count / (count - 1)) / sum(sizes)


def _variants(options: CalibrationOptions, subject: Subject) -> list[_Variant]:
    """What to measure.

    Raises:
        ConfigError: a transform is unknown, or shards cannot cut the latents.
    """
    width = subject.latent.kv_rank
    if not options.shards or min(options.shards) < 1:
        raise ConfigError("--shards: name at least one number of shards, each at least 1")
    if options.transforms:
        names = [TransformName.parse(text) for text in options.transforms]
    else:
        names = _default_names(subject, options.shards)
    variants = [_Variant(name, shards) for shards in options.shards for name in names]
    for variant in variants:
        create_transform_kind(variant.name.kind)
        variant.scheme().slice_width(width)
        _check_heads(subject, variant.shards)
        _check_layers(subject, variant.name)
    return list(dict.fromkeys(variants))


def _default_names(subject: Subject, shards: Sequence[int]) -> list[TransformName]:
    """All kinds, one with an exact layer, and that for common columns where these leave slices of
    equal width."""
    width = subject.latent.kv_rank
    names = [TransformName(kind) for kind in transform_kinds() if kind != _COMMON_KIND]
    if width & (width - 1):
        names.remove(TransformName("hadamard"))
    if subject.config.num_layers > 1:
        names.append(TransformName(_EXACT_KIND, exact=1))
    for part in _COMMON:
        common = width // part
        if common and all((width - common) % count == 0 for count in shards):
            names.append(TransformName(_COMMON_KIND, common))
    return names


def _check_heads(subject: Subject, shards: int) -> None:
    """The shards also share the heads of prompts."""
    heads = subject.config.num_heads
    if heads % shards:
        raise ConfigError(
            f"--shards {shards}: {heads} heads cannot be shared by {shards} ranks; use a number "
            f"that divides them"
        )


def _check_layers(subject: Subject, name: TransformName) -> None:
    if name.exact >= subject.config.num_layers:
        raise ConfigError(
            f"--transform {name}: the model has {subject.config.num_layers} layers, of which at "
            f"least one must be sliced; --mla-parallel dcp is exact in all of them"
        )


def _check_memory(subject: Subject, corpus: Corpus) -> None:
    """Raises CheckpointError if the model and the exact scores do not fit."""
    placement = Placement(dtype=subject.torch_dtype, device=subject.device, ranks=OneRank())
    scored = len(corpus.held_out) * (corpus.window - corpus.prompt)
    scores = 4 * scored * subject.config.vocab_size
    if subject.device.type == "cpu":
        scores += weight_bytes(subject.config, placement)
    check_memory(scores, available_memory(), "the model and the scores of its tokens")


def _earlier_report(folder: Path) -> QualityReport | None:
    try:
        return QualityReport.read(folder)
    except CheckpointError:  # whoever reads it is told to calibrate again, which is done here
        return None


def _report(bench: _Bench, rows: Sequence[QualityRow]) -> QualityReport:
    subject, corpus, size = bench.subject, bench.corpus, sum(bench.sizes)
    return QualityReport(
        model=subject.checkpoint.fingerprint,
        dtype=subject.dtype,
        text=corpus.name,
        text_digest=corpus.digest,
        calibration_tokens=sum(map(len, corpus.calibration)),
        scored_tokens=bench.num_tokens,
        scored_bytes=size,
        window=corpus.window,
        prompt=corpus.prompt,
        elements=subject.latent.kv_rank + subject.latent.rope_dim,
        nll_per_token=bench.exact.nll / bench.num_tokens,
        nll_per_byte=bench.exact.nll / size,
        rows=tuple(rows),
    )
