"""The executor that runs a model: rows to logits, logits to tokens.

Keeps one sampling state per request. Proposed tokens are sampled behind like any others, each with
the state that the sequence would have there. Knows no queues and frees no blocks.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from twinflow.runtime.executor import LayersDone, Work
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.model_runner import SequenceRows
from twinflow.runtime.outputs import SampledRun
from twinflow.runtime.request import Request
from twinflow.runtime.runner import Runner
from twinflow.runtime.sampling import Sampler, SamplingState
from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.drafters.base import Outlook
from twinflow.runtime.speculative.speculation import Speculation, judge


class ModelExecutor:
    """Runs row groups through a model and samples.

    Args:
        runner: the model and its KV cache.
        sampler: for the same vocabulary.
        vocab_size: columns of the logits.
        layers_per_unit: how often a listener hears of finished layers.
        speculation: makes proposals; None for none.
    """

    def __init__(
        self,
        runner: Runner,
        sampler: Sampler,
        *,
        vocab_size: int,
        layers_per_unit: int,
        speculation: Speculation | None = None,
    ) -> None:
        self._runner = runner
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._layers_per_unit = layers_per_unit
        self._speculation = speculation
        self._states: dict[str, SamplingState] = {}
        self._requests: dict[str, Request] = {}

    def beside(self, runner: Runner, sampler: Sampler) -> "ModelExecutor":
        """Another executor for the same requests, for steps at the same time as this one's.

        Requests are admitted and forgotten here. Hidden states of a request wait here too: rows
        that do not cross all layers are for this executor only.

        Args:
            runner: see `ModelRunner.beside`.
            sampler: one of its own.
        """
        other = copy(self)
        other._runner, other._sampler = runner, sampler
        return other

    def admit(self, request: Request) -> None:
        """See `Executor.admit`."""
        state = SamplingState(
            request.params,
            request.params.seed or 0,
            request.prompt_token_ids,
            self._vocab_size,
            request.ending_token_ids,
        )
        for token_id in request.output_token_ids:
            state.append(token_id)
        self._states[request.request_id] = state
        self._requests[request.request_id] = request

    def accept(self, request_id: str, token_id: int) -> None:
        """See `Executor.accept`."""
        self._states[request_id].append(token_id)

    def restart(self, request_id: str) -> None:
        """See `Executor.restart`."""
        request = self._requests.get(request_id)
        if request is not None and self._speculation is not None:
            self._speculation.release(request)
        self._runner.forget(request_id)

    def forget(self, request_id: str) -> None:
        """See `Executor.forget`."""
        self._states.pop(request_id, None)
        request = self._requests.pop(request_id, None)
        if request is not None and self._speculation is not None:
            self._speculation.forget(request)
        self._runner.forget(request_id)

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> Sequence[Draft]:
        """See `Executor.propose`."""
        if self._speculation is None:
            return [NOTHING] * len(requests)
        return self._speculation.propose(requests, limits)

    def outlook(self, requests: Sequence[Request], nodes: int) -> Outlook:
        """See `Executor.outlook`."""
        if self._speculation is None:
            return Outlook()
        return self._speculation.outlook(requests, nodes)

    def execute(self, work: Sequence[Work], on_layers: LayersDone | None) -> list[SampledRun]:
        """See `Executor.execute`."""
        rows = [row for item in work for row in _rows(item)]
        logits = self._runner.forward(rows, on_layers, self._layers_per_unit)
        if any(item.branches for item in work):
            logits = logits[torch.tensor(_node_order(work), device=logits.device)]
        sampling = [item for item in work if item.group.samples]
        if self._speculation is None:
            return self._verdicts(sampling, logits)
        likeliest = self._speculation.likeliest(logits)  # before sampling changes them
        runs = self._verdicts(sampling, logits)
        self._speculation.observe(sampling, runs, likeliest)
        return runs

    def _verdicts(self, sampling: Sequence[Work], logits: Tensor) -> list[SampledRun]:
        """What each group gets; logits [sampled rows, vocabulary] are overwritten."""
        states = [state for item in sampling for state in self._states_along(item)]
        sampled = iter(self._sampler.sample(logits, states))
        return [judge(w.draft, list(islice(sampled, w.group.sampled_rows))) for w in sampling]

    def _states_along(self, item: Work) -> list[SamplingState]:
        """The sampling state of a sequence, and those that it would have behind proposed tokens."""
        states = [self._states[item.request.request_id]]
        for parent, token in zip(item.draft.parents, item.draft.tokens, strict=True):
            states.append(states[parent].after(token))
        return states

    def take_traffic(self) -> Sequence[LayerTraffic]:
        """See `Executor.take_traffic`."""
        return self._runner.take_traffic()


def _rows(item: Work) -> list[SequenceRows]:
    """The rows of a group; those of a proposal that branches, branch by branch."""
    request, group = item.request, item.group
    whole = SequenceRows(
        token_ids=item.token_ids,
        start=group.token_start,
        block_ids=item.blocks,
        samples=group.samples,
        prompt_tokens=len(request.prompt_token_ids),
        held_as=request.request_id if request.hold else None,
        layer_start=group.layer_start,
        layer_end=group.layer_end,
        sequence=request.request_id,
        drafted=group.drafted,
    )
    if not item.branches:
        return [whole]
    return [
        replace(
            whole,
            token_ids=[item.token_ids[node] for node in branch.nodes],
            start=branch.start,
            block_ids=branch.blocks,
            drafted=len(branch.nodes) - 1,
            ancestors=branch.ancestors,
            copied_block=branch.copied_block,
        )
        for branch in item.branches
    ]


def _node_order(work: Sequence[Work]) -> list[int]:
    """Which row of the logits belongs to each sampled row, in order of groups and nodes."""
    order: list[int] = []
    for item in work:
        first, count = len(order), item.group.sampled_rows
        if item.branches:
            nodes = [node for branch in item.branches for node in branch.nodes]
            order += [first + row for row in sorted(range(count), key=nodes.__getitem__)]
        else:
            order += range(first, first + count)
    return order
