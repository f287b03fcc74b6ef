"""Takes times of single steps, of an engine that plans what it is told.

A step is measured with all that belongs to it, from planning to the sampled tokens. Prompts are
random tokens, so that they spread over experts. Which steps, and how often, is decided elsewhere.
"""

import time
from collections.abc import Callable, Sequence
from random import Random

import torch

from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.cost.steps import Bounds, Steps
from twinflow.runtime.engine import Engine
from twinflow.runtime.engine_plan import EnginePlan
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.model_executor import ModelExecutor
from twinflow.runtime.request import Request
from twinflow.runtime.runner import Runner
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.schedulers.base import SchedulerState
from twinflow.runtime.step_plan import RowGroup, RowKind, StepPlan

# Engines refuse requests that might not fit.
SAMPLING_ROOM = 32
SAMPLING = SamplingParams(temperature=0.0, max_tokens=SAMPLING_ROOM, ignore_eos=True, seed=0)


def bounds_of(plan: EnginePlan) -> Bounds:
    """What an engine can be made to do."""
    config = plan.config
    return Bounds(
        rows=config.max_num_batched_tokens,
        batch=config.max_num_seqs,
        context=config.max_model_len - SAMPLING_ROOM,
        kv_tokens=(config.num_blocks - 1) * config.block_size,
    )


class _Script:
    """A scheduler that plans what it is told."""

    def __init__(self) -> None:
        self.next = StepPlan()

    def plan(self, state: SchedulerState, now: float) -> StepPlan:
        return self.next


class StepTimer:
    """Takes times of single steps.

    Args:
        plan: of the engine.
        runner: of the model.
        seed: of the tokens of prompts.
        clock: seconds.
        settle: waits for what a step has handed over to the device.
    """

    def __init__(
        self,
        plan: EnginePlan,
        runner: Runner,
        *,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._script = _Script()
        self._model = plan.model
        self._random = Random(seed)
        self._clock = clock
        self._settle = settle
        self._cuda = plan.options.device != "cpu"
        vocab_size = plan.model.vocab_size
        executor = ModelExecutor(
            runner,
            Sampler(vocab_size, plan.options.device),
            vocab_size=vocab_size,
            layers_per_unit=0,
        )
        blocks = BlockManager(
            plan.config.num_blocks,
            plan.config.block_size,
            model_fingerprint="",
            layout_digest="",
            enable_prefix_caching=False,
        )
        self.engine = Engine(
            plan.config,
            executor,
            blocks,
            self._script,
            num_layers=plan.model.num_layers,
            clock=clock,
        )

    def run(self, steps: Steps) -> list[tuple[StepLoad, float]]:
        """Compute a batch; its loads and seconds, of one step or of two."""
        decoders = [self._request(f"d{i}", steps.context) for i in range(steps.batch)]
        for request in decoders:
            request.output_token_ids.append(self._token())
        if decoders:
            # Admission and the first touch of memory are not part of decoding.
            self._step(self._decodes(decoders), 1)
        layers = self._model.num_layers
        cuts = [(0, layers)]
        if steps.layered and layers > 1:
            cuts = [(0, layers // 2), (layers // 2, layers)]
        if steps.rows:
            self._request("p", steps.start + steps.rows)
        timed = []
        for first, end in cuts:
            groups = self._decodes(decoders)
            if steps.rows:
                groups.append(
                    RowGroup(
                        request_id="p",
                        token_start=steps.start,
                        token_count=steps.rows,
                        layer_start=first,
                        layer_end=end,
                        kind=RowKind.PREFILL,
                        samples=end == layers,
                    )
                )
            timed.append((StepLoad.of(groups), self._step(groups, len(cuts))))
        for request_id in ("p", *(request.request_id for request in decoders)):
            self.engine.abort(request_id)
        return timed

    def _request(self, request_id: str, length: int) -> Request:
        prompt = [self._token() for _ in range(length)]
        request = Request(request_id=request_id, prompt_token_ids=prompt, params=SAMPLING)
        self.engine.add_request(request)
        return request

    def _token(self) -> int:
        return self._random.randrange(self._model.vocab_size)

    def _decodes(self, requests: Sequence[Request]) -> list[RowGroup]:
        return [
            RowGroup(
                request_id=request.request_id,
                token_start=request.num_tokens - 1,
                token_count=1,
                layer_start=0,
                layer_end=self._model.num_layers,
                kind=RowKind.DECODE,
                samples=True,
            )
            for request in requests
        ]

    def _step(self, groups: Sequence[RowGroup], layer_groups: int) -> float:
        self._script.next = StepPlan(tuple(groups), layer_groups=layer_groups)
        began = self._clock()
        self.engine.step()
        self._settle()
        if self._cuda:
            torch.cuda.synchronize()
        taken = self._clock() - began
        failures = self.engine.take_outputs().failures
        if failures:
            raise failures[0][1]
        return taken
