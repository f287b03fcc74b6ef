"""Dispatchers over fake workers, and the sequences they are given."""

import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.support.fake_worker import TOKEN, FakeWorker, running, until

from twinflow.cluster.dispatch.admission import AdmissionLimits
from twinflow.cluster.dispatch.config import DispatchConfig
from twinflow.cluster.dispatch.dispatcher import Dispatcher
from twinflow.cluster.dispatch.roster import Duty
from twinflow.cluster.gateway.backend import GenerationSpec, ModelInfo
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.outputs import TokenDelta
from twinflow.runtime.sampling_params import SamplingParams

# For a busy machine, and for tests that wait for the limit itself.
PATIENT = DispatchConfig(
    silence_limit_s=30.0, describe_timeout_s=30.0, reconnect_s=0.02, probe_timeout_s=30.0
)
QUICK = DispatchConfig(silence_limit_s=0.6, reconnect_s=0.02, probe_timeout_s=1.0)
MODEL = ModelInfo(
    name="tiny",
    root="tiny",
    max_model_len=256,
    vocab_size=997,
    dtype="float32",
    block_size=4,
    created=0,
)
EOS = (996,)
_numbers = itertools.count()


def create_spec(
    prompt: Sequence[int] | int = 10, max_tokens: int = 8, **changes: Any
) -> GenerationSpec:
    """A greedy sequence; an int prompt is that many tokens no other sequence has."""
    number = next(_numbers)
    if isinstance(prompt, int):
        prompt = [(number * 131 + index * 7) % 900 for index in range(prompt)]
    params = SamplingParams(temperature=0, seed=number, max_tokens=max_tokens, logprobs=0)
    return GenerationSpec(f"sequence-{number}", tuple(prompt), params, **changes)


class Reports:
    """The workers that have reported and are not gone, and those of them that are away."""

    def __init__(self) -> None:
        self.workers: set[str] = set()
        self.lost: set[str] = set()

    def observe_worker(self, worker_id: str, role: str, stats: pb.WorkerStats) -> None:
        self.workers.add(worker_id)
        self.lost.discard(worker_id)

    def lose_worker(self, worker_id: str) -> None:
        self.lost.add(worker_id)

    def forget_worker(self, worker_id: str) -> None:
        self.workers.remove(worker_id)

    def remove_worker(self, worker_id: str) -> None:
        self.workers.discard(worker_id)
        self.lost.discard(worker_id)


def create_dispatcher(
    workers: Sequence[FakeWorker],
    config: DispatchConfig = PATIENT,
    listener: Reports | None = None,
    **limits: Any,
) -> Dispatcher:
    """A dispatcher that is not connected yet."""

    return Dispatcher(
        MODEL,
        EOS,
        [Duty(worker.where) for worker in workers],
        TOKEN,
        limits=AdmissionLimits(**limits),
        listener=listener or Reports(),
        config=config,
    )


@asynccontextmanager
async def dispatching(
    *workers: FakeWorker,
    config: DispatchConfig = PATIENT,
    listener: Reports | None = None,
    **limits: Any,
) -> AsyncGenerator[Dispatcher, None]:
    """A dispatcher that is connected to all workers; at the end, nothing may be left anywhere."""
    async with running(*workers):
        dispatcher = create_dispatcher(workers, config, listener, **limits)
        dispatcher.start()
        try:
            await until(lambda: len(dispatcher.available) == len(workers))
            yield dispatcher
            await until(lambda: not any(worker.live for worker in workers))
            assert dispatcher.num_live == 0
            assert dispatcher.queue.num_requests == dispatcher.queue.num_tokens == 0
            dispatcher.check_integrity()
        finally:
            await dispatcher.close()


async def collect(dispatcher: Dispatcher, spec: GenerationSpec) -> list[TokenDelta]:
    """Admit a sequence and run it to its end."""
    dispatcher.admit((spec,))
    return [delta async for delta in dispatcher.generate(spec)]


def tokens_of(deltas: Sequence[TokenDelta]) -> list[int]:
    """All tokens, in order."""
    return [token for delta in deltas for token in delta.token_ids]
