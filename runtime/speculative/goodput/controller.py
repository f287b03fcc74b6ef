"""Adapts proposals to what they are worth: measures steps and verdicts, and chooses by them.

One object for one engine, asked before each step that decodes and told afterwards what became of
it. It reads no clock and changes no token. Each choice can be made again from its record.

Steps that compute prompts too are not measured: what they take says little of a row that decodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from twinflow.runtime.speculative.goodput.acceptance import Acceptance
from twinflow.runtime.speculative.goodput.choice import (
    Candidate,
    GoodputChoice,
    GoodputInputs,
    choose,
)
from twinflow.runtime.speculative.goodput.times import RowTimes

# Share of the time without proposals that goes to finding out whether they are worth it again.
_PROBE_SHARE = 0.01
# Fewest steps from one such attempt to the next.
_PROBE_STEPS = 16
# Weight of the newest measurement of drafting.
_NEWEST = 0.25


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
        speculating: steps with proposals.
        silent: steps without any, because none was worth it.
        probes: steps with proposals that were made to be measured only.
    """

    speculating: int = 0
    silent: int = 0
    probes: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that something may be proposed to, and the most nodes of that."""

    request_id: str
    limit: int


class GoodputController:
    """See the module.

    Args:
        widths: nodes of each level of the drafter's proposals.
        record: keeps every choice; None for nobody.
    """

    def __init__(self, widths: Sequence[int], record: Record | None = None) -> None:
        self._widths = tuple(widths)
        self._record = record
        self._times = RowTimes()
        self._acceptance = Acceptance()
        self._draft_seconds: float | None = None
        self._saved = 0.0
        self._steps = self._probed = 0
        self._choice = GoodputChoice(())
        self._figures = GoodputFigures()

    @property
    def figures(self) -> GoodputFigures:
        """What was chosen up to now."""
        return replace(self._figures)

    def limits(self, asks: Sequence[Ask], decoding: int) -> tuple[int, ...]:
        """Choose for the next step.

        Args:
            asks: at least one.
            decoding: rows that decode in it, at least as many.

        Returns:
            Most nodes to propose to each, perhaps none.
        """
        self._steps += 1
        self._acceptance.prune(ask.request_id for ask in asks)
        inputs = GoodputInputs(
            decoding=decoding,
            candidates=tuple(
                Candidate(self._acceptance.rate(ask.request_id, self._steps), ask.limit)
                for ask in asks
            ),
            widths=self._widths,
            times=self._times.points(self._steps),
            draft_seconds=self._draft_seconds or 0.0,
            saved=self._saved if self._steps - self._probed >= _PROBE_STEPS else None,
        )
        choice = self._choice = choose(inputs)
        if self._record is not None:
            self._record.write(inputs, choice)
        if choice.probe:
            self._figures.probes += 1
            self._saved, self._probed = 0.0, self._steps
        elif choice.rows:
            self._figures.speculating += 1
        else:
            self._figures.silent += 1
        return choice.limits

    def drafted(self, seconds: float) -> None:
        """Proposals within the limits that were chosen last took so long to make."""
        levels = self._depth(max(self._choice.limits))
        each = seconds / levels
        before = each if self._draft_seconds is None else self._draft_seconds
        self._draft_seconds = before + _NEWEST * (each - before)

    def stepped(self, rows: int, seconds: float) -> None:
        """A step is over that decoded and verified, and nothing else.

        Args:
            rows: that it computed.
            seconds: that it took; 0 if the clock has not moved, which says nothing.
        """
        if seconds <= 0.0:
            return
        self._times.note(rows, seconds, self._steps)
        if not self._choice.rows:
            self._saved += _PROBE_SHARE * seconds

    def verified(self, request_id: str, accepted: int, depth: int) -> None:
        """A proposal of so many levels was verified, and so many of them were accepted."""
        self._acceptance.note(request_id, accepted, depth, self._steps)

    def close(self) -> None:
        """Nothing is asked any more."""
        if self._record is not None:
            self._record.close()

    def _depth(self, nodes: int) -> int:
        """Levels of a proposal with so many nodes."""
        depth = 0
        for width in self._widths:
            if nodes <= 0:
                break
            depth, nodes = depth + 1, nodes - width
        return max(depth, 1)
