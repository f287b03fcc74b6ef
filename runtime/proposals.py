"""What an engine does about proposals: asks for them before it plans, settles them after a step.

A request that decodes may have tokens proposed to it. They are computed behind its last token in
the same rows, so blocks are reserved for them; which of them the request gets is known after the
step. What was computed for the others stays where it is and is overwritten before anybody could
read it: rows see positions up to their own only, and a position becomes a request's when its token
is computed again. Nothing of it is published, because only a request's own tokens are.
"""

from collections.abc import Callable, Iterable, Sequence

from twinflow.runtime.config import EngineConfig
from twinflow.runtime.executor import Executor, Work
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.lanes.view import decodes
from twinflow.runtime.outputs import SampledToken
from twinflow.runtime.queues import RequestQueues
from twinflow.runtime.request import Request, RequestStatus
from twinflow.runtime.speculative.account import SpeculationAccount
from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.goodput.controller import Ask, Drafting, GoodputController
from twinflow.runtime.step_plan import RowKind
from twinflow.runtime.tree_branches import TreeBranch, open_branches


class Proposals:
    """The proposals of one engine.

    Args:
        config: of the engine.
        executor: makes them.
        blocks: of the requests.
        account: of all of them together.
        clock: seconds, monotonic; only durations are used.
        goodput: says how much is worth proposing; None if that is always as much as is allowed.
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        blocks: BlockManager,
        account: SpeculationAccount,
        clock: Callable[[], float],
        goodput: GoodputController | None = None,
    ) -> None:
        self._clock = clock
        self._goodput = goodput
        self._config = config
        self._executor = executor
        self._blocks = blocks
        self._account = account

    def renew(self, requests: Sequence[Request], queues: RequestQueues) -> None:
        """Replace the proposals of requests that the next step may take up.

        Args:
            requests: these.
            queues: they, and all others.
        """
        if not self._config.num_speculative_tokens:
            return
        for request in requests:
            request.draft = NOTHING
        decoding = sum(map(decodes, requests))
        if not decoding or (self._goodput is not None and self._goodput.holds(decoding)):
            return
        asks = [(request, limit) for request in requests if (limit := self._limit(request)) > 0]
        if not asks:
            return
        if self._goodput is None:
            self._propose(*zip(*asks, strict=True))
        else:
            self._propose_worthwhile(self._goodput, asks, decoding, self._coming(decoding, queues))

    def _coming(self, decoding: int, queues: RequestQueues) -> int:
        """How many more requests will decode soon: those on their way, and those with room."""
        here = [*queues.running, *queues.receiving]
        free = self._blocks.num_idle
        for request in queues.waiting[: max(self._config.max_num_seqs - len(here), 0)]:
            free -= self._blocks.blocks_for(request.num_tokens)
            if free < 0:
                break
            here.append(request)
        return sum(not request.hold for request in here) - decoding

    def _propose_worthwhile(
        self,
        goodput: GoodputController,
        asks: Sequence[tuple[Request, int]],
        decoding: int,
        coming: int,
    ) -> None:
        """Propose as much as is worth it, and take down what that took."""
        most = self._config.num_speculative_tokens
        outlook = self._executor.outlook([request for request, _ in asks], most)
        behind = outlook.behind or (0,) * len(asks)
        able = [
            (request, limit, late)
            for (request, limit), late in zip(asks, behind, strict=True)
            if late is not None
        ]
        named = [
            Ask(request.request_id, limit, late, request.max_total_tokens - request.num_tokens)
            for request, limit, late in able
        ]
        limits = goodput.limits(named, decoding, outlook.widths, coming)
        chosen = [
            (request, limit, late)
            for (request, _, late), limit in zip(able, limits, strict=True)
            if limit
        ]
        if not chosen:
            return
        asked, limits, late = zip(*chosen, strict=True)
        began = self._clock()
        drafts = self._propose(asked, limits)
        seconds = self._clock() - began
        levels = max(draft.levels for draft in drafts)
        rows = sum(map(len, drafts))
        goodput.drafted(Drafting(seconds, levels, rows, self._caught_up(asked, late)))

    def _caught_up(self, requests: Sequence[Request], behind: Sequence[int]) -> int:
        """How many tokens the drafter is not behind with any more."""
        if not any(behind):
            return 0
        outlook = self._executor.outlook(requests, self._config.num_speculative_tokens)
        left = outlook.behind or behind  # nobody knows once the drafter has failed
        now = [was if one is None else one for was, one in zip(behind, left, strict=True)]
        return max(sum(behind) - sum(now), 0)

    def _propose(self, requests: Sequence[Request], limits: Sequence[int]) -> Sequence[Draft]:
        drafts = self._executor.propose(requests, limits)
        for request, draft in zip(requests, drafts, strict=True):
            request.draft = draft
        return drafts

    def _limit(self, request: Request) -> int:
        """How many tokens may be proposed: with one more behind them they must be allowed."""
        if request.hold or not decodes(request):
            return 0
        longest = min(request.max_total_tokens, self._config.max_model_len)
        return min(self._config.num_speculative_tokens, longest - request.num_tokens - 1)

    def reserve(self, request: Request, draft: Draft) -> Sequence[TreeBranch]:
        """Take the blocks of a request's rows and of what was proposed; see `Work.branches`."""
        if draft.tokens and not draft.is_chain:
            return open_branches(self._blocks, request, draft)
        self._blocks.grow(request.request_id, request.num_tokens + len(draft.tokens))
        return ()

    def accept(self, item: Work, run: Sequence[SampledToken]) -> None:
        """Let a request go on in the branch that came true, and take down what became of it all.

        Args:
            item: a row group of the step that is over.
            run: what the request gets; all but the last token were proposed.
        """
        if not item.group.drafted:
            return
        accepted = len(run) - 1
        if item.branches:
            node = item.draft.along([sampled.token_id for sampled in run[:-1]])
            true = next(branch for branch in item.branches if node in branch.nodes)
            self._blocks.adopt(item.request.request_id, true.blocks)
        for account in (self._account, item.request.speculation):
            account.note(item.group.drafted, accepted)
        if self._goodput is not None:
            self._goodput.verified(item.request.request_id, accepted, item.draft.depth)

    def timed(self, work: Sequence[Work], seconds: float) -> None:
        """A step is over and took so long."""
        if self._goodput is None or any(item.group.kind is RowKind.PREFILL for item in work):
            return
        self._goodput.stepped(sum(item.group.token_count for item in work), seconds)

    def settle(self, item: Work) -> None:
        """Drop a proposal that was verified, and give back the blocks that it was to fill."""
        request = item.request
        request.draft = NOTHING
        if item.group.drafted and request.status is RequestStatus.RUNNING:
            self._blocks.trim(request.request_id, request.num_tokens)

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Between steps nothing is left of proposals; raises AssertionError otherwise.

        A request that decodes has KV of all tokens but the last, and blocks for its tokens alone.
        """
        for request in requests:
            if request.status is not RequestStatus.RUNNING or request.computing:
                continue
            name, held = request.request_id, self._blocks.num_held(request.request_id)
            needed = self._blocks.blocks_for(request.num_tokens)
            if held > needed:
                raise AssertionError(f"request {name} holds {held} blocks and needs {needed}")
            if not request.num_computed < request.num_tokens:
                raise AssertionError(
                    f"request {name} has {request.num_tokens} tokens and KV of "
                    f"{request.num_computed}: the last one must be left to compute"
                )
