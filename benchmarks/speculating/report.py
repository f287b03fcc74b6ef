"""Tables and pictures of `benchmarks.speculative`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.load.spread import Spread, ratios, spread
from benchmarks.reporting import error_bars, markdown_table, new_figure
from benchmarks.speculating.arms import NONE
from benchmarks.speculating.serving import Served
from benchmarks.speculating.stages import BASE, Times


@dataclass
class Cell:
    """One arm at one task and concurrency.

    Attributes:
        arm: its name.
        task: likewise.
        concurrency: sequences at a time.
        rounds: what became of each round.
        tpot: per round, of the arm to that of no proposals.
        same: whether all tokens are those without proposals.
    """

    arm: str
    task: str
    concurrency: int
    rounds: list[Served] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    same: bool = True

    @property
    def tokens_per_pass(self) -> float:
        """Of all rounds together: tokens that sequences got, by passes of the target."""
        return self._sum("gained") / self._sum("passes")

    @property
    def acceptance(self) -> list[float]:
        """At each place, how many of the proposals had their token accepted."""
        drafts = sum(one.account.drafts for one in self.rounds)
        places = max((len(one.account.accepted_at) for one in self.rounds), default=0)
        counts = [
            sum(one.account.accepted_at[place] for one in self.rounds if place < _places(one))
            for place in range(places)
        ]
        return [count / drafts for count in counts] if drafts else []

    def share(self, part: str) -> float:
        """Of the time of decoding steps."""
        return self._sum(part) / self._sum("step_s")

    @property
    def step_ms(self) -> float:
        """Mean of the decoding steps of one sequence."""
        return 1e3 * self._sum("step_s") * self.concurrency / self._sum("passes")

    @property
    def tpot_ratio(self) -> Spread:
        """TPOT, to that without proposals in the same round."""
        return spread(self.tpot)

    def figures(self) -> dict[str, object]:
        """For machines."""
        return {
            "arm": self.arm,
            "task": self.task,
            "concurrency": self.concurrency,
            "tokens_per_pass": self.tokens_per_pass,
            "acceptance_by_place": self.acceptance,
            "draft_share": self.share("draft_s"),
            "verify_share": self.share("verify_s"),
            "tpot_s": [one.tpot_s for one in self.rounds],
            "tpot_ratio": self.tpot,
            "same_tokens": self.same,
        }

    def _sum(self, name: str) -> float:
        return float(sum(getattr(one, name) for one in self.rounds))


def _places(served: Served) -> int:
    return len(served.account.accepted_at)


def serving_table(cells: Sequence[Cell]) -> str:
    """One row for each cell."""
    heads = ["task", "at a time", "arm", "tokens/pass", "accepted at 1, 2, …"]
    heads += ["step, ms", "draft", "verify", "other", "TPOT to none", "same tokens"]
    rows = []
    for cell in cells:
        draft, verify = cell.share("draft_s"), cell.share("verify_s")
        rows.append(
            (
                cell.task,
                str(cell.concurrency),
                cell.arm,
                f"{cell.tokens_per_pass:.2f}",
                " ".join(f"{rate:.2f}" for rate in cell.acceptance),
                f"{cell.step_ms:.1f}",
                f"{draft:.0%}",
                f"{verify:.0%}",
                f"{1 - draft - verify:.0%}",
                cell.tpot_ratio.text(),
                "yes" if cell.same else "NO",
            )
        )
    return markdown_table(heads, rows)


def compact_table(cells: Sequence[Cell]) -> str:
    """One row for each arm: by task if all cells have one concurrency, else by both."""
    several = len({cell.concurrency for cell in cells}) > 1
    return _concurrency_table(cells) if several else _task_table(cells)


def _task_table(cells: Sequence[Cell]) -> str:
    """Tokens per pass of each task; acceptance at the first one; the others over all tasks."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    heads = ["arm", *tasks, f"accepted at 1, 2, … ({tasks[0]})", "drafting, of a step"]
    rows = []
    for own in _by_arm(cells):
        whole = Cell(own[0].arm, "", own[0].concurrency)
        whole.rounds = [one for cell in own for one in cell.rounds]
        whole.tpot = [ratio for cell in own for ratio in cell.tpot]
        tokens = [f"{cell.tokens_per_pass:.2f}" for cell in own]
        accepted = " ".join(f"{rate:.2f}" for rate in own[0].acceptance)
        drafting = f"{whole.share('draft_s'):.0%}"
        rows.append((whole.arm, *tokens, accepted, drafting, whole.tpot_ratio.text()))
    return markdown_table([*heads, "TPOT to none"], rows)


def _concurrency_table(cells: Sequence[Cell]) -> str:
    """Tokens per pass / TPOT to none / share of the time that is not the target's."""
    columns = dict.fromkeys(f"{cell.task}, {cell.concurrency}" for cell in cells)
    rows = [
        (
            own[0].arm,
            *(
                f"{cell.tokens_per_pass:.2f} / {cell.tpot_ratio.median:.2f} / "
                f"{1 - cell.share('verify_s'):.1%}"
                for cell in own
            ),
        )
        for own in _by_arm(cells)
    ]
    return markdown_table(["arm", *columns], rows)


def _by_arm(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each arm, tasks and concurrencies in the same order."""
    arms = dict.fromkeys(cell.arm for cell in cells)
    return [[cell for cell in cells if cell.arm == arm] for arm in arms]


def draw_serving(cells: Sequence[Cell]) -> Figure:
    """Tokens per pass at one sequence, and TPOT by concurrency."""
    several = len({cell.concurrency for cell in cells}) > 1
    figure = new_figure(13 if several else 7, 5)
    left, *others = figure.subplots(1, 2 if several else 1, squeeze=False)[0]
    least = min(cell.concurrency for cell in cells)
    arms = list(dict.fromkeys(cell.arm for cell in cells if cell.arm != NONE))
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    for number, task in enumerate(tasks):
        own = {c.arm: c for c in cells if c.task == task and c.concurrency == least}
        places = [index + (number - 1) * 0.27 for index in range(len(arms))]
        left.barh(places, [own[arm].tokens_per_pass for arm in arms], 0.25, label=task)
    left.set_yticks(range(len(arms)), arms)
    left.invert_yaxis()
    left.set(xlabel="tokens per target pass", title=f"{least} at a time")
    left.axvline(1.0, color="black", linewidth=0.8)
    left.legend(loc="best", fontsize="small")
    for right in others:
        _draw_concurrency(right, [cell for cell in cells if cell.task == tasks[0]], arms)
        right.set(title=tasks[0])
    return figure


def _draw_concurrency(axes: Axes, cells: Sequence[Cell], arms: Sequence[str]) -> None:
    for arm in arms:
        line = [cell for cell in cells if cell.arm == arm]
        at, found = [c.concurrency for c in line], [c.tpot_ratio for c in line]
        error_bars(axes, at, found, arm)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="sequences at a time", ylabel="TPOT to that of none")
    axes.set_xscale("log", base=2)
    axes.legend(loc="best", fontsize="x-small")


def stage_table(times: Times) -> str:
    """Drafting by layout and group size, to sequential drafting on cut heads."""
    rows = []
    for (shape, layout, size), found in times.items():
        quicker = ratios(times[(shape, *BASE)], found)
        ms = spread([1e3 * each for each in found])
        rows.append((shape, layout, str(size), ms.text(1), quicker.text()))
    heads = ("drafter", "layout", "N", "proposal, ms", "quicker than sequential fused_tp")
    return markdown_table(heads, rows)


def stage_figures(times: Times) -> Mapping[str, object]:
    """For machines."""
    return {
        "stages": [
            {"drafter": shape, "layout": layout, "size": size, "seconds": found}
            for (shape, layout, size), found in times.items()
        ]
    }


def draw_stages(times: Times) -> Figure:
    """How much quicker each layout drafts, by group size."""
    shapes = list(dict.fromkeys(shape for shape, _, _ in times))
    figure = new_figure(11, 4)
    for axes, shape in zip(figure.subplots(1, len(shapes)), shapes, strict=True):
        for layout in dict.fromkeys(layout for one, layout, _ in times if one == shape):
            sizes = [size for one, own, size in times if (one, own) == (shape, layout)]
            base = times[(shape, *BASE)]
            found = [ratios(base, times[shape, layout, size]) for size in sizes]
            error_bars(axes, sizes, found, layout)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set(title=shape, xlabel="layers side by side", ylabel="times as quick")
        axes.legend(loc="best", fontsize="small")
    return figure
