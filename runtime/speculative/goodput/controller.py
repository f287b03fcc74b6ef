"""Adapts proposals to what they are worth: measures steps and verdicts, and chooses by them.

One object for one engine, asked before each step that decodes and told afterwards what became of
it. It reads no clock and changes no token. Each choice can be made again from its record.

While nothing is worth it, a choice holds for a few steps, unless the load falls: such a step costs
what it costs without speculation. What proposals have taken that were made to be measured only is
counted against the share of time that they may take.

Steps that compute prompts too are not measured: what they take says little of a row that decodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from twinflow.runtime.speculative.goodput.acceptance import Acceptance
from twinflow.runtime.speculative.goodput.choice import (
    MEASURED_BEHIND,
    Candidate,
    GoodputChoice,
    GoodputInputs,
    choose,
    seconds_of,
)
from twinflow.runtime.speculative.goodput.times import RowTimes

# Share of the time without proposals that goes to finding out whether they are worth it again.
_PROBE_SHARE = 0.01
# Fewest steps from one such attempt to the next.
_PROBE_STEPS = 16
# Steps without proposals from one choice to the next, while as many requests decode or nearly so.
_HELD_STEPS = 8
_NEARLY = 7 / 8
# Weight of the newest measurement of catching up.
_NEWEST = 0.25
# Drafting depends on less than steps do, and each new measurement of it costs a proposal.
_REMEMBERED_DRAFTS = 16 * 1024


class Record(Protocol):
    """Keeps choices."""

    def write(self, inputs: GoodputInputs, choice: GoodputChoice) -> None:
        """Add a choice and what it depends on."""
        ...

    def close(self) -> None:
        """No choice follows."""
        ...


@dataclass(slots=True)
class GoodputFigures:
    """What was chosen since the start.

    Attributes:
        speculating: steps with proposals, or for which a drafter has caught up with sequences.
        silent: steps without either, because nothing was worth it or nothing was found.
        probes: steps with proposals that were made to be measured only.
    """

    speculating: int = 0
    silent: int = 0
    probes: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that something may be proposed to; see `Candidate`."""

    request_id: str
    limit: int
    behind: int = 0
    remaining: int = 64


@dataclass(frozen=True, slots=True)
class Drafting:
    """What it took to make the proposals of a step.

    Attributes:
        seconds: all of it.
        levels: of the deepest proposal.
        rows: nodes of all proposals.
        behind: tokens that the drafter caught up with.
    """

    seconds: float
    levels: int
    rows: int
    behind: int = 0


class GoodputController:
    """See the module.

    Args:
        widths: nodes of each level of the drafter's proposals at first.
        record: keeps every choice; None for nobody.
    """

    def __init__(self, widths: Sequence[int], record: Record | None = None) -> None:
        self._widths = tuple(widths)
        self._record = record
        self._times = RowTimes()
        self._draft_times = RowTimes(_REMEMBERED_DRAFTS)
        self._acceptance = Acceptance()
        self._behind_seconds: float | None = None
        self._saved = 0.0
        self._steps = self._probed = 0
        self._choice = GoodputChoice(())
        self._held = self._held_for = 0
        self._usual = 0.0
        self._figures = GoodputFigures()

    @property
    def figures(self) -> GoodputFigures:
        """What was chosen up to now."""
        return replace(self._figures)

    def holds(self, decoding: int) -> bool:
        """Whether the next step has no proposals, because those before it had none.

        Args:
            decoding: rows that decode in it.
        """
        if decoding < _NEARLY * self._held_for:
            self._held = 0
        if not self._held:
            return False
        self._held -= 1
        self._steps += 1
        self._figures.silent += 1
        return True

    def limits(
        self, asks: Sequence[Ask], decoding: int, widths: Sequence[int] = (), coming: int = 0
    ) -> tuple[int, ...]:
        """Choose for the next step.

        Args:
            asks: who may get proposals.
            decoding: rows that decode in it, at least as many.
            widths: nodes of each level of the drafter's proposals from now on; nothing if they have
                not changed.
            coming: requests that will decode soon.

        Returns:
            Most nodes to propose to each, perhaps none.
        """
        self._steps += 1
        names = [ask.request_id for ask in asks]
        self._acceptance.prune(names)
        self._widths = tuple(widths) or self._widths
        inputs = GoodputInputs(
            decoding=decoding,
            candidates=tuple(
                Candidate(rate, ask.limit, ask.behind, ask.remaining)
                for ask, rate in zip(asks, self._acceptance.rates(names, self._steps), strict=True)
            ),
            widths=self._widths,
            times=self._times.points(self._steps),
            draft_times=self._draft_times.points(self._steps),
            behind_seconds=self._behind_seconds,
            saved=self._saved if self._steps - self._probed >= _PROBE_STEPS else None,
            coming=coming,
        )
        choice = self._choice = choose(inputs)
        if self._record is not None:
            self._record.write(inputs, choice)
        if choice.probe:
            self._probed, self._usual = self._steps, seconds_of(inputs.times, decoding)
        elif not choice.rows:
            self._figures.silent += 1
            # Until a step without proposals was measured, there is nothing to compare them with.
            self._held = _HELD_STEPS - 1 if inputs.times else 0
            self._held_for = decoding
        return choice.limits

    def drafted(self, made: Drafting) -> None:
        """Proposals within the limits that were chosen last were made, or came to nothing."""
        levels = max(made.levels, 1)
        if self._choice.probe:
            self._figures.probes += 1
            # What was saved and not needed is not kept: it would be spent on a large one at once.
            self._saved = min(self._saved - made.seconds, 0.0)
        elif made.rows or made.behind:
            self._figures.speculating += 1
        else:
            self._figures.silent += 1
        if made.behind >= MEASURED_BEHIND:
            drafting = levels * self._level_seconds(made.rows / levels)
            rows = made.behind if drafting else made.behind + made.rows
            late = max(made.seconds - drafting, 0.0) / rows
            before = late if self._behind_seconds is None else self._behind_seconds
            self._behind_seconds = before + _NEWEST * (late - before)
        elif made.rows and made.seconds > 0.0:
            self._draft_times.note(made.rows / levels, made.seconds / levels, self._steps)

    def _level_seconds(self, rows: float) -> float:
        """Of drafting a level, no less than of the smallest that was measured; 0 if none was."""
        known = self._draft_times.points(self._steps)
        return seconds_of(known, max(rows, known[0][0])) if known else 0.0

    def stepped(self, rows: int, seconds: float) -> None:
        """A step is over that decoded and verified, and nothing else.

        Args:
            rows: that it computed.
            seconds: that it took; 0 if the clock has not moved, which says nothing.
        """
        if seconds <= 0.0:
            return
        self._times.note(rows, seconds, self._steps)
        if self._choice.probe:
            self._saved -= max(seconds - self._usual, 0.0)
        elif not self._choice.rows:
            self._saved += _PROBE_SHARE * seconds

    def verified(self, request_id: str, accepted: int, depth: int) -> None:
        """A proposal of so many levels was verified, and so many of them were accepted."""
        self._acceptance.note(request_id, accepted, depth, self._steps)

    def close(self) -> None:
        """Nothing is asked any more."""
        if self._record is not None:
            self._record.close()
