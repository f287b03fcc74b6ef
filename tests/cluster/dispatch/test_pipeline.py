"""The text pipeline over a real dispatcher: room is given back on every way out."""

import time

import pytest
from prometheus_client import CollectorRegistry
from tests.support.dispatchers import dispatching
from tests.support.fake_text import ByteCodec
from tests.support.fake_worker import FakeWorker, until

from twinflow.cluster.dispatch.dispatcher import Dispatcher
from twinflow.cluster.gateway.generation import collect
from twinflow.cluster.gateway.metrics import GatewayMetrics
from twinflow.cluster.gateway.text_pipeline import Call, TextPipeline
from twinflow.cluster.gateway.validation import GenerationRequest, TokenPrompt
from twinflow.protos.errors import EngineError, Overloaded
from twinflow.runtime.sampling_params import SamplingParams


def pipeline_over(dispatcher: Dispatcher) -> TextPipeline:
    """A pipeline whose text nobody looks at."""
    return TextPipeline(dispatcher, ByteCodec(), GatewayMetrics(CollectorRegistry(), "tiny"))


def request_of(n: int, max_tokens: int = 6) -> GenerationRequest:
    """One prompt, n completions."""
    params = SamplingParams(n=n, temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return GenerationRequest("tiny", (TokenPrompt((1, 2, 3)),), params)


def call() -> Call:
    """A call that arrives now."""
    return Call("request", time.monotonic())


async def test_completions_are_collected() -> None:
    async with dispatching(FakeWorker("mixed-0")) as dispatcher:
        async with pipeline_over(dispatcher).open(request_of(3), call()) as generation:
            outputs = await collect(generation)
        assert [len(output.token_ids) for output in outputs] == [6, 6, 6]


async def test_a_request_that_nobody_reads_is_never_started() -> None:
    worker = FakeWorker("mixed-0")
    async with dispatching(worker) as dispatcher:
        async with pipeline_over(dispatcher).open(request_of(3), call()):
            assert dispatcher.num_live == dispatcher.queue.num_requests == 3
        assert dispatcher.num_live == 0
    assert worker.submissions == []


async def test_a_reader_that_leaves_in_the_middle() -> None:
    worker = FakeWorker("mixed-0")
    worker.behaviour.pause_after = 1
    async with dispatching(worker) as dispatcher:
        async with pipeline_over(dispatcher).open(request_of(3), call()) as generation:
            await anext(generation)
        assert dispatcher.num_live == 0
        await until(lambda: len(worker.aborted) == len(worker.submissions))
    assert 1 <= len(worker.submissions) <= 3


async def test_one_completion_that_fails_ends_the_others() -> None:
    worker = FakeWorker("mixed-0")
    worker.behaviour.failure = EngineError("the step failed")
    async with dispatching(worker) as dispatcher:
        async with pipeline_over(dispatcher).open(request_of(4), call()) as generation:
            with pytest.raises(EngineError):
                await collect(generation)
        assert dispatcher.num_live == 0


async def test_a_refused_request_leaves_nothing() -> None:
    async with dispatching(FakeWorker("mixed-0"), max_requests=2) as dispatcher:
        with pytest.raises(Overloaded):
            async with pipeline_over(dispatcher).open(request_of(3), call()):
                raise AssertionError("it was admitted")
        assert dispatcher.num_live == 0
