"""A small model drafts: token by token, with the noise of the model that is served.

The drafter's tokens are argmax of its own logits plus the noise of their positions, after the same
penalties and filters. So it agrees with the target at least (1 - d) / (1 + d) of the time, where d
is the total variation between the two (Daliri et al., arXiv 2408.07978), at any temperature.

A proposal of k tokens takes k passes over one row of each sequence; the first of them also computes
what the sequence has gained since the last proposal, a prompt included. A pass has no more rows
than a step of the engine, for everybody waits for it: a sequence that is far behind catches up over
several steps, and gets no proposals meanwhile. The drafter has KV blocks of its own. A sequence
that finds none idle goes without proposals until some are. KV of a proposed token is kept if the
token came true: it was computed from the same tokens.

With a plan that computes layers side by side (EasySpec, arXiv 2502.02493), a pass is quicker and
approximate, and so are the keys and values it writes. The first pass of a proposal is the bonus
calibration: exact, over all that the sequence has gained. It writes exact keys and values over
approximate ones, and the first proposed token is exact. Passes behind it are approximate, and
what they write is scratch: it is never counted as written.

                     accepted  bonus │ proposed
    exact pass       c  d      x     │              proposes y
    approximate                      │ y            proposes z

KV of a prompt may come from another worker (`draft_kv`); a sequence whose KV is on its way goes
without proposals until it is here, or has failed to come.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from twinflow.runtime.model_runner import SequenceRows
from twinflow.runtime.outputs import SampledToken
from twinflow.runtime.runner import DraftRunner
from twinflow.runtime.sampling import Sampler, SamplingState
from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.drafters.base import (
    DraftedSequence,
    DraftQuery,
    LikelyNext,
    Outlook,
)
from twinflow.runtime.speculative.drafters.draft_kv import DraftKV
from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan


@dataclass(slots=True)
class _Drafted:
    """What the drafter knows of a sequence.

    Attributes:
        state: sampling state, up to the sequence's last known token.
        known: tokens of the sequence that the state has seen.
        prompt: tokens of its prompt.
        written: tokens whose KV is in the blocks and counts, in order.
        exact: positions, from the first, that were last computed by an exact pass.
        blocks: block table.
    """

    state: SamplingState
    known: int
    prompt: int
    written: list[int] = field(default_factory=list)
    exact: int = 0
    blocks: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Round:
    """A proposal in the making.

    Attributes:
        drafted: of the sequence.
        start: first position to be computed.
        tokens: from there to the last one known or proposed.
        limit: most tokens to propose.
        state: behind the last of them.
        proposed: so far.
    """

    drafted: _Drafted
    start: int
    tokens: list[int]
    limit: int
    state: SamplingState
    proposed: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What the first pass of proposals has come to.

    Attributes:
        ready: sequences of which nothing is left to compute.
        logits: behind each of them, [ready, vocabulary].
        began: when the pass did, as `DraftKV.begin_pass` says.
        prompt_rows: rows of it in sequences whose prompt was still to be computed.
    """

    ready: list[Round]
    logits: Tensor
    began: float
    prompt_rows: int


class DraftModelDrafter:
    """See the module.

    Args:
        runner: of the small model, with KV blocks that nobody else uses.
        sampler: for its vocabulary, which is that of the target.
        vocab_size: tokens of both.
        max_rows: rows of one pass.
        plan: how passes behind the first one of a proposal cross the layers.
        calibrate: make the first pass exact; without it, all passes behind the prompt follow the
            plan, and what they write is kept.
        fingerprint: see `DraftKV`.

    Attributes:
        kv: its blocks, and prompts that come from elsewhere.
    """

    likely_tokens = 0

    def __init__(
        self,
        runner: DraftRunner,
        sampler: Sampler,
        *,
        vocab_size: int,
        max_rows: int,
        plan: LayerPlan | None = None,
        calibrate: bool = True,
        fingerprint: str = "",
    ) -> None:
        self._groups = None if plan is None or plan.is_serial else plan.groups
        self._calibrate = calibrate
        self._runner = runner
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._max_rows = max_rows
        self.kv = DraftKV(runner, max_rows, fingerprint)
        self._block_size = self.kv.block_size
        self._pool = self.kv.pool
        self._sequences: dict[str, _Drafted] = {}

    @property
    def num_idle_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return self._pool.num_idle

    def propose(self, queries: Sequence[DraftQuery]) -> list[Draft]:
        """See `Drafter.propose`."""
        rounds = [self._begin(query) for query in queries]
        live = [one for one in rounds if one is not None]
        if not live:
            return [NOTHING] * len(rounds)
        first = self._catch_up(live)
        live = self._extend(first.ready, first.logits)
        self.kv.end_pass(first.began, first.prompt_rows)
        while live:
            rows = [self._rows(one, 1) for one in live]
            logits = self._runner.forward(rows, groups=self._groups)
            for one in live:
                self._written(one, 1, exact=self._groups is None)
            live = self._extend(live, logits)
        return [NOTHING if one is None else Draft.chain(one.proposed) for one in rounds]

    def _begin(self, query: DraftQuery) -> Round | None:
        """Take note of what a sequence has gained, and of blocks for what is to be computed."""
        sequence = query.sequence
        if self.kv.awaits(sequence.request_id):
            return None
        drafted = self._sequences.get(sequence.request_id)
        if drafted is None:
            drafted = self._sequences[sequence.request_id] = self._meet(sequence)
        gained = sequence.tokens(drafted.known, sequence.num_tokens - drafted.known)
        for position, token in enumerate(gained, start=drafted.known):
            drafted.state.append(token)
            if position < len(drafted.written) and drafted.written[position] != token:
                del drafted.written[position:]
        drafted.known = sequence.num_tokens
        # The last token's logits are needed, so it is computed in any case.
        del drafted.written[drafted.known - 1 :]
        missing = self._missing(drafted.known, query.limit, len(drafted.blocks))
        if missing > self._pool.num_idle:
            return None
        drafted.blocks += self._pool.allocate(max(missing, 0))
        start = len(drafted.written)
        tokens = list(sequence.tokens(start, drafted.known - start))
        return Round(drafted, start, tokens, query.limit, drafted.state)

    def _meet(self, sequence: DraftedSequence) -> _Drafted:
        params = replace(sequence.params, logprobs=None)
        prompt, seed = sequence.prompt_token_ids, sequence.params.seed or 0
        ending = sequence.ending_token_ids
        state = SamplingState(params, seed, prompt, self._vocab_size, ending)
        drafted = _Drafted(state, known=len(prompt), prompt=len(prompt))
        brought = self.kv.take(sequence.request_id)
        if brought is not None:
            drafted.written, drafted.blocks = list(brought.tokens), list(brought.blocks)
            drafted.exact = len(brought.tokens)
        return drafted

    def _catch_up(self, rounds: Sequence[Round]) -> CaughtUp:
        """Compute what sequences have gained, or as much of it as one pass holds.

        Args:
            rounds: at least one.
        """
        began = self.kv.begin_pass()
        shares = [(one, count) for one, count in self._shares(rounds) if count]
        in_prompt = [count for one, count in shares if one.start < one.drafted.prompt]
        exact = self._calibrate or self._groups is None or bool(in_prompt)
        rows = [self._rows(one, count) for one, count in shares]
        logits = self._runner.forward(rows, groups=None if exact else self._groups)
        for one, count in shares:
            self._written(one, count, exact=exact)
        ready = [number for number, (one, _) in enumerate(shares) if not one.tokens]
        if len(ready) < len(shares):
            logits[:, 0].tolist()  # waits for the device: nobody may ask for what it says
            logits = logits[ready]
        return CaughtUp([shares[number][0] for number in ready], logits, began, sum(in_prompt))

    def _shares(self, rounds: Sequence[Round]) -> list[tuple[Round, int]]:
        """Rows of one pass for each sequence.

        Whoever needs no more than an equal share gets it; the others take turns at what is left, so
        that nobody's proposal waits for somebody else's prompt.
        """
        equal = max(1, self._max_rows // len(rounds))
        left = self._max_rows - sum(n for one in rounds if (n := len(one.tokens)) <= equal)
        shares: list[tuple[Round, int]] = []
        for one in rounds:
            count = len(one.tokens)
            if count > equal:
                count = min(count, max(left, 0))
                left -= count
            shares.append((one, count))
        return shares

    def _extend(self, rounds: Sequence[Round], logits: Tensor) -> list[Round]:
        """Propose one more token to every sequence; returns those that may get another one."""
        if not rounds:
            return []
        sampled = self._sampler.sample(logits, [one.state for one in rounds])
        for one, token in zip(rounds, sampled, strict=True):
            if isinstance(token, SampledToken):
                one.state = one.state.after(token.token_id)
                one.proposed.append(token.token_id)
                one.tokens = [token.token_id]
            else:  # nothing can be said behind logits that are no numbers
                one.limit = len(one.proposed)
        return [one for one in rounds if len(one.proposed) < one.limit]

    def _rows(self, one: Round, count: int) -> SequenceRows:
        tokens, end = one.tokens[:count], one.start + count
        return SequenceRows(tokens, one.start, one.drafted.blocks, samples=True, prompt_tokens=end)

    def _written(self, one: Round, count: int, *, exact: bool) -> None:
        drafted = one.drafted
        if exact or not self._calibrate:
            drafted.written += one.tokens[:count]
        if exact and one.start <= drafted.exact:
            drafted.exact = one.start + count
        elif not exact:
            drafted.exact = min(drafted.exact, one.start)
        one.start += count
        one.tokens = one.tokens[count:]

    def outlook(self, sequences: Sequence[DraftedSequence], nodes: int) -> Outlook:
        """See `Drafter.outlook`."""
        return Outlook(behind=tuple(self._behind_of(sequence, nodes) for sequence in sequences))

    def _behind_of(self, sequence: DraftedSequence, nodes: int) -> int | None:
        name = sequence.request_id
        if self.kv.awaits(name):
            return None
        drafted = self._sequences.get(name)
        written = self.kv.num_brought(name) if drafted is None else len(drafted.written)
        held = -(-written // self._block_size) if drafted is None else len(drafted.blocks)
        if self._missing(sequence.num_tokens, nodes, held) > self._pool.num_idle:
            return None
        return max(sequence.num_tokens - 1 - written, 0)

    def _missing(self, known: int, nodes: int, held: int) -> int:
        """Blocks that so many proposed tokens behind so many known ones need beyond those held."""
        return -(-(known + nodes - 1) // self._block_size) - held

    def observe(self, likely: Sequence[LikelyNext]) -> None:
        """See `Drafter.observe`; never called."""

    def forget(self, sequence: DraftedSequence) -> None:
        """See `Drafter.forget`."""
        drafted = self._sequences.pop(sequence.request_id, None)
        if drafted is not None:
            self._pool.release(drafted.blocks)
        self.kv.forget(sequence.request_id)

    def check_integrity(self) -> None:
        """Between proposals, what counts as written is exact; raises AssertionError otherwise.

        Without calibration that is so for prompts. The last known token is always still to be
        computed, and every block is idle or in one block table.
        """
        for name, drafted in self._sequences.items():
            counted = len(drafted.written)
            if not self._calibrate:
                counted = min(counted, drafted.prompt)
            if counted > drafted.exact:
                raise AssertionError(
                    f"request {name}: of {counted} drafted positions {drafted.exact} are exact"
                )
            if len(drafted.written) > len(drafted.blocks) * self._block_size:
                raise AssertionError(f"request {name} has written more than its blocks hold")
        held = [block for drafted in self._sequences.values() for block in drafted.blocks]
        held += self.kv.held_blocks
        if len(set(held)) < len(held) or len(held) + self._pool.num_idle != self._pool.num_blocks:
            raise AssertionError("blocks of the drafter are lost, or belong to several sequences")
