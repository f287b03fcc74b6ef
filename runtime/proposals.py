"""What an engine does about proposals: asks for them before it plans, settles them after a step.

A request that decodes may have tokens proposed to it. They are computed behind its last token in
the same rows, so blocks are reserved for them; which of them the request gets is known after the
step. What was computed for the others stays where it is and is overwritten before anybody could
read it: rows see positions up to their own only, and a position becomes a request's when its token
is computed again. Nothing of it is published, because only a request's own tokens are.
"""

from collections.abc import Iterable, Sequence

from twinflow.runtime.config import EngineConfig
from twinflow.runtime.executor import Executor, Work
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.lanes.view import decodes
from twinflow.runtime.request import Request, RequestStatus
from twinflow.runtime.speculative.account import SpeculationAccount
from twinflow.runtime.speculative.draft import NOTHING


class Proposals:
    """The proposals of one engine.

    Args:
        config: of the engine.
        executor: makes them.
        blocks: of the requests.
        account: of all of them together.
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        blocks: BlockManager,
        account: SpeculationAccount,
    ) -> None:
        self._config = config
        self._executor = executor
        self._blocks = blocks
        self._account = account

    def renew(self, requests: Sequence[Request]) -> None:
        """Replace the proposals of requests that the next step may take up."""
        if not self._config.num_speculative_tokens:
            return
        limits = {request.request_id: self._limit(request) for request in requests}
        asked = [request for request in requests if limits[request.request_id] > 0]
        for request in requests:
            request.draft = NOTHING
        each = [limits[request.request_id] for request in asked]
        for request, draft in zip(asked, self._executor.propose(asked, each), strict=True):
            request.draft = draft

    def _limit(self, request: Request) -> int:
        """How many tokens may be proposed: with one more behind them they must be allowed."""
        if request.hold or not decodes(request):
            return 0
        longest = min(request.max_total_tokens, self._config.max_model_len)
        return min(self._config.num_speculative_tokens, longest - request.num_tokens - 1)

    def count(self, item: Work, accepted: int) -> None:
        """Take down what became of a proposal.

        Args:
            item: a row group of the step that is over.
            accepted: proposed tokens that were right.
        """
        if item.group.drafted:
            for account in (self._account, item.request.speculation):
                account.note(item.group.drafted, accepted)

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
