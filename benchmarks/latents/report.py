"""Medians, ratios, table and picture of `benchmarks.latent`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.latents.arms import ARMS, BASE, Sizes, Timing
from benchmarks.load.spread import Spread, ratios, spread
from benchmarks.reporting import error_bars, markdown_table, new_figure


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm at one size.

    Attributes:
        arm: the layout.
        sizes: what was attended to.
        cached_bytes: of a rank, in one layer, for all sequences.
        bytes_ratio: the same against `replicated`.
        ms: milliseconds of a step of a layer, with what ranks exchange.
        ratio: the same against `replicated`, round by round.
        kernel_ms: milliseconds of the kernel alone; see `Timing`.
        kernel_ratio: the same against `replicated`, round by round.
    """

    arm: str
    sizes: Sizes
    cached_bytes: int
    bytes_ratio: float
    ms: Spread
    ratio: Spread
    kernel_ms: Spread
    kernel_ratio: Spread


def cells(
    sizes: Sizes,
    cached_bytes: dict[str, int],
    timings: Sequence[dict[str, list[Timing]]],
) -> list[Cell]:
    """A cell for each arm.

    Args:
        sizes: of all of them.
        cached_bytes: of a rank.
        timings: of each rank; the time of a round is that of the slowest one.
    """

    def slowest(arm: str, part: Callable[[Timing], float]) -> list[float]:
        rounds = zip(*(rank[arm] for rank in timings), strict=True)
        return [1000 * max(map(part, ranks)) for ranks in rounds]

    totals = {arm: slowest(arm, lambda timing: timing.total) for arm in cached_bytes}
    kernels = {arm: slowest(arm, lambda timing: timing.kernel) for arm in cached_bytes}
    return [
        Cell(
            arm=arm,
            sizes=sizes,
            cached_bytes=cached_bytes[arm],
            bytes_ratio=cached_bytes[arm] / cached_bytes[BASE],
            ms=spread(totals[arm]),
            ratio=ratios(totals[arm], totals[BASE]),
            kernel_ms=spread(kernels[arm]),
            kernel_ratio=ratios(kernels[arm], kernels[BASE]),
        )
        for arm in cached_bytes
    ]


def as_json(found: Sequence[Cell]) -> list[dict[str, object]]:
    """For machines."""
    return [asdict(cell) for cell in found]


def as_markdown(found: Sequence[Cell]) -> str:
    """The table: medians, and the range of the rounds in brackets."""
    heads = (
        "heads",
        "context",
        "layout",
        "cache, KiB",
        "of replicated",
        "step, ms",
        "of replicated",
        "kernel, ms",
        "of replicated",
    )
    return markdown_table(heads, [_row(cell) for cell in found])


def _row(cell: Cell) -> list[str]:
    base = cell.arm == BASE
    return [
        str(cell.sizes.heads),
        str(cell.sizes.context),
        cell.arm,
        f"{cell.cached_bytes / 1024:.0f}",
        "" if base else f"{cell.bytes_ratio:.3f}",
        cell.ms.text(),
        "" if base else cell.ratio.text(),
        cell.kernel_ms.text(),
        "" if base else cell.kernel_ratio.text(),
    ]


def draw(found: Sequence[Cell]) -> Figure:
    """Kernel times and their ratios by context; a row of pictures for each number of heads."""
    heads = list(dict.fromkeys(cell.sizes.heads for cell in found))
    figure = new_figure(11, 4 * len(heads))
    rows = figure.subplots(len(heads), 2, squeeze=False)
    for number, (times, relative) in zip(heads, rows, strict=True):
        some = [cell for cell in found if cell.sizes.heads == number]
        _draw(times, some, lambda cell: cell.kernel_ms)
        times.set(title=f"attention of a rank, {number} heads in all", ylabel="ms", yscale="log")
        _draw(relative, some, lambda cell: cell.kernel_ratio)
        for cell in {cell.arm: cell for cell in some}.values():
            relative.axhline(cell.bytes_ratio, color=_colour(cell.arm), linestyle=":")
        relative.set(title="of replicated; dotted: cache bytes of a rank", ylim=(0, None))
        for axes in (times, relative):
            axes.set(xlabel="tokens of context")
            axes.set_xscale("log", base=2)
            axes.grid(alpha=0.3)
            axes.legend(loc="best", fontsize="small")
    return figure


def _draw(axes: Axes, some: Sequence[Cell], figure: Callable[[Cell], Spread]) -> None:
    for arm in ARMS:
        own = [cell for cell in some if cell.arm == arm]
        if not own:
            continue
        contexts = [cell.sizes.context for cell in own]
        error_bars(axes, contexts, list(map(figure, own)), label=arm, color=_colour(arm))


def _colour(arm: str) -> str:
    return f"C{ARMS.index(arm)}"
