"""A small model drafts trees: several likely tokens at each place, with the noise of the target.

What a builder of trees takes for the probability of a token is the softmax of the drafter's scores,
noise and filters included: what the target is likely to choose there, and not what it might.

The first pass computes what a sequence has gained, as for chains. Each level of the tree is a pass
over all paths that go on, from the last known token: a few more rows, in blocks of their own that
are given back at once. A path that finds none idle, or is longer than a pass has rows, ends where
it is. Where filters leave few tokens, as `top_k` or a mask does, so does the tree: what cannot come
has no node.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from twinflow.runtime.model_runner import SequenceRows
from twinflow.runtime.runner import DraftRunner
from twinflow.runtime.sampling import Sampler, SamplingState
from twinflow.runtime.speculative.draft import NOTHING, Draft, FloatArray
from twinflow.runtime.speculative.drafters.base import DraftedSequence, DraftQuery, Outlook
from twinflow.runtime.speculative.drafters.draft_model import (
    DraftModelDrafter,
    Round,
)
from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan
from twinflow.runtime.speculative.trees.base import Growth, Path, grow_together
from twinflow.runtime.speculative.trees.config import TreeConfig
from twinflow.runtime.speculative.trees.measured import MeasuredTree
from twinflow.runtime.speculative.trees.registry import SEQUOIA, tree_builder


@dataclass(slots=True)
class _Place:
    """A path whose continuation is asked for.

    Attributes:
        rows: to compute.
        state: behind its last token.
        blocks: that are its own.
    """

    rows: SequenceRows
    state: SamplingState
    blocks: list[int]


class TreeModelDrafter(DraftModelDrafter):
    """See the module.

    Args:
        runner: see `DraftModelDrafter`.
        sampler: likewise.
        tree: which trees.
        vocab_size: see `DraftModelDrafter`.
        max_rows: likewise.
        plan: likewise; the first pass is always exact, because no other one's keys and values are
            kept.
        fingerprint: likewise.
    """

    def __init__(
        self,
        runner: DraftRunner,
        sampler: Sampler,
        tree: TreeConfig,
        *,
        vocab_size: int,
        max_rows: int,
        plan: LayerPlan | None = None,
        fingerprint: str = "",
    ) -> None:
        super().__init__(
            runner,
            sampler,
            vocab_size=vocab_size,
            max_rows=max_rows,
            plan=plan,
            fingerprint=fingerprint,
        )
        self._tree = tree
        self._build = tree_builder(tree.type)
        self._measured = MeasuredTree(tree) if tree.type == SEQUOIA else None

    def propose(self, queries: Sequence[DraftQuery]) -> list[Draft]:
        """See `Drafter.propose`."""
        if self._measured is None:
            return self._grow(queries)
        for query in queries:
            self._measured.settle(query.sequence)
        drafts = self._grow(queries)
        for query, draft in zip(queries, drafts, strict=True):
            self._measured.proposed(query.sequence, draft)
        return drafts

    def outlook(self, sequences: Sequence[DraftedSequence], nodes: int) -> Outlook:
        """See `Drafter.outlook`."""
        found = super().outlook(sequences, nodes)
        if self._measured is None:
            return found
        return replace(found, widths=self._measured.widths(nodes))

    def forget(self, sequence: DraftedSequence) -> None:
        """See `Drafter.forget`."""
        super().forget(sequence)
        if self._measured is not None:
            self._measured.forget(sequence.request_id)

    def _grow(self, queries: Sequence[DraftQuery]) -> list[Draft]:
        rounds = [self._begin(query) for query in queries]
        live = [one for one in rounds if one is not None]
        if not live:
            return [NOTHING] * len(rounds)
        first = self._catch_up(live)
        live = first.ready
        roots = self._likely(first.logits, [one.state for one in live])
        self.kv.end_pass(first.began, first.prompt_rows)
        growths = [self._shape(one.limit) for one in live]

        def expand(wanted: Mapping[int, Sequence[Path]]) -> dict[int, list[FloatArray]]:
            paths = [(number, path) for number, some in wanted.items() for path in some if path]
            behind = iter(self._behind([(live[number], path) for number, path in paths]))
            return {
                number: [next(behind) if path else roots[number] for path in some]
                for number, some in wanted.items()
            }

        drafts = iter(grow_together(growths, expand))
        return [next(drafts) if one is not None and not one.tokens else NOTHING for one in rounds]

    def _shape(self, nodes: int) -> Growth:
        """A tree in the making."""
        if self._measured is not None:
            return self._measured.template(nodes).grow(nodes)
        return self._build(self._tree, nodes)

    def _behind(self, paths: Sequence[tuple[Round, Path]]) -> list[FloatArray]:
        """The distributions behind paths, as many in a pass as there are rows for."""
        found: list[FloatArray] = []
        nothing = np.zeros(self._vocab_size)
        pending = deque(paths)
        while pending:
            places: list[_Place | None] = []
            rows = 0
            # The first path of a pass is taken in any case: one that is too long gets no place.
            while pending and (not places or rows + len(pending[0][1]) <= self._max_rows):
                one, path = pending.popleft()
                places.append(self._place(one, path))
                rows += len(path)
            computed = [place for place in places if place is not None]
            states = [place.state for place in computed]
            said = iter(self._distributions([place.rows for place in computed], states))
            found += [nothing if place is None else next(said) for place in places]
            for place in computed:
                self._pool.release(place.blocks)
        return found

    def _place(self, one: Round, path: Path) -> _Place | None:
        """Rows for a path in blocks of its own; None if there are too few of either."""
        if len(path) > self._max_rows:
            return None
        known, table = one.drafted.known, one.drafted.blocks
        shared, inside = divmod(known, self._block_size)
        needed = (known + len(path) - 1) // self._block_size - shared + 1
        if needed > self._pool.num_idle:
            return None
        blocks = self._pool.allocate(needed)
        state = one.state
        for token in path:
            state = state.after(token)
        rows = SequenceRows(
            path,
            known,
            [*table[:shared], *blocks],
            samples=True,
            prompt_tokens=known + len(path),
            copied_block=table[shared] if inside else 0,
        )
        return _Place(rows, state, blocks)

    def _distributions(
        self, rows: Sequence[SequenceRows], states: Sequence[SamplingState]
    ) -> list[FloatArray]:
        """The distributions behind groups of rows."""
        if not rows:
            return []
        return self._likely(self._runner.forward(rows, groups=self._groups), states)

    def _likely(self, logits: Tensor, states: Sequence[SamplingState]) -> list[FloatArray]:
        """The softmax of the scores in each row; zeros where they are no numbers."""
        if not states:
            return []
        faults = self._sampler.score(logits, states)
        likely = logits.softmax(dim=-1).double().cpu().numpy()
        likely[sorted(faults)] = 0.0
        return list(likely)
