"""Layered prefill (arXiv 2510.08055): prompts cross the model one group of layers per step.

    step     layers 0-3   layers 4-7   layers 8-11
      1       P P P D D       D D          D D         P rows of prompts, D decode rows
      2          D D       P P P D D       D D
      3          D D          D D       P P P D D

Chunked prefill takes every chunk through every layer, and on a mixture of experts each chunk loads
nearly all experts again. Here the tokens stay together and the layers are cut: a prompt passes each
layer once, and decode rows still pass all of them in every step.

A wave is the prompts that move together. Its members are frozen when it sets out: who comes later
waits for the next one, at most as many steps as the wave has groups. Prompts too long for one wave
cross the model chunk by chunk, each chunk a wave. Where nothing decodes, nobody needs the steps to
be short, and a wave crosses all layers that are left at once.

The number of groups is the paper's, one per 512 tokens; with an objective for the time between
tokens and a model of step times, it is the smallest with which a step is predicted to meet the
objective.
"""

from collections.abc import Sequence

from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.base import SchedulerState
from twinflow.runtime.schedulers.draft import Draft
from twinflow.runtime.schedulers.layer_groups import (
    TOKENS_PER_GROUP,
    fewest_groups,
    group_end,
    paper_groups,
)
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.step_plan import StepPlan


class LayeredScheduler:
    """See the module.

    Args:
        setup: of the policy.
        tokens_per_group: tokens of a wave for each group, where no objective decides.
    """

    def __init__(self, setup: SchedulerSetup, *, tokens_per_group: int = TOKENS_PER_GROUP) -> None:
        self._setup = setup
        self._tokens_per_group = tokens_per_group

    def plan(self, state: SchedulerState, now: float) -> StepPlan:
        """See `Scheduler.plan`; this policy does not look at the time."""
        draft = Draft(self._setup, state)
        draft.decode()
        wave = [request for request in draft.running if request.wave]
        if not wave:
            return self._set_out(draft)
        for request in wave:
            self._move_on(request, draft)
        # Whoever needs no rows here, because another worker computes its prompt, may come in.
        draft.fill(draft.prompts(), lambda request, start: False)
        return draft.plan()

    def _move_on(self, request: Request, draft: Draft) -> None:
        """Give a member of the wave its next layers."""
        wave, num_layers = request.wave, self._setup.limits.num_layers
        if wave is not None:
            split = wave.groups if _hurries(draft) else 1
            layers = (wave.next_layer, group_end(wave.next_layer, split, num_layers))
            draft.add(request, wave.token_start, wave.token_count, layers)

    def _set_out(self, draft: Draft) -> StepPlan:
        """Form a wave of the prompts that fit into one, and give it its first layers.

        Every seat that the wave leaves may be one of decode rows before the wave arrives.
        """
        limits = self._setup.limits
        own_seat = limits.rows_per_seat if _hurries(draft) else 0
        seats = limits.max_num_seqs * own_seat
        room = limits.max_num_batched_tokens - seats if seats else draft.budget
        members: list[tuple[Request, int, int]] = []

        def give(request: Request, start: int) -> bool:
            nonlocal room
            if members and room <= 0:
                return False
            count = min(request.num_tokens - start, room + own_seat)
            if count > 0:
                members.append((request, start, count))
                room += own_seat - count
            return count > 0

        draft.fill(draft.prompts(), give)
        groups = self._groups(members, draft)
        end = group_end(0, groups, self._setup.limits.num_layers)
        for request, start, count in members:
            draft.add(request, start, count, (0, end))
        return draft.plan(layer_groups=groups)

    def _groups(self, members: Sequence[tuple[Request, int, int]], draft: Draft) -> int:
        """Into how many groups the layers are cut for a wave."""
        if not members or not _hurries(draft):
            return 1
        setup = self._setup
        if setup.times is None or setup.tbt_objective is None:
            tokens = sum(count for _, _, count in members)
            return paper_groups(tokens, setup.limits.num_layers, self._tokens_per_group)
        wave = [draft.rows(*member) for member in members]
        return fewest_groups(wave, draft.groups, setup.times, setup.tbt_objective)


def _hurries(draft: Draft) -> bool:
    """Whether somebody waits for a next token."""
    return any(request.output_token_ids for request in draft.decoding)
