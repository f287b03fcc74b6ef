"""Draws a quality report: what each transform costs, over what a rank caches.

Needs matplotlib, which twinflow does not install by itself.
"""

from importlib.util import find_spec
from pathlib import Path

from twinflow.protos.errors import ConfigError
from twinflow.runtime.calibration.report import QualityReport

PICTURE = "report.png"
NO_MATPLOTLIB = "no picture was drawn: matplotlib is not installed (pip install matplotlib)"

_DOTS_PER_INCH = 120


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_report(report: QualityReport, path: Path) -> None:
    """Write the picture as PNG.

    Raises:
        ConfigError: it cannot be written, or matplotlib is not installed.
    """
    if not can_draw():
        raise ConfigError(NO_MATPLOTLIB)
    # Loaded here, because calibrations are made without it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    loss, agreement = figure.subplots(1, 2)
    names = list(dict.fromkeys(row.transform for row in report.rows))
    groups = list(dict.fromkeys((row.shards, row.earlier) for row in report.rows))
    for place, (shards, earlier) in enumerate(groups):
        rows = [row for row in report.rows if (row.shards, row.earlier) == (shards, earlier)]
        places = [
            names.index(row.transform) + 0.12 * (place - (len(groups) - 1) / 2) for row in rows
        ]
        label = f"{shards} shards"
        if earlier is not None:
            label += f" ({earlier.text}, contexts of {earlier.window})"
        losses = [row.delta_nll_per_byte for row in rows]
        errors = [row.error_per_byte for row in rows]
        loss.errorbar(places, losses, yerr=errors, fmt="o", capsize=3, label=label)
        agreement.plot(places, [row.agreement for row in rows], "o", label=label)
    loss.axhline(0, color="black", linewidth=0.8)
    loss.set(title="ΔNLL of decode steps, nats per byte", ylabel="worse than exact →")
    agreement.set(title="tokens whose most likely one is the exact model's", ylim=(None, 1))
    for axes in (loss, agreement):
        axes.set_xticks(range(len(names)), names, rotation=20)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=_DOTS_PER_INCH)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
