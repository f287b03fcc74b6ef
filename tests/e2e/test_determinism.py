"""A request's tokens and log probabilities are the same bits whatever the engine does with it.

Every request is first run alone, in one piece, without a prefix cache. Then it runs in hundreds of
random mixes through engines that chunk, preempt, share prefixes and resume.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from tests.support.request_mixes import Ask, MixShape, random_asks
from tests.support.served_models import TINY_VOCAB, write_tiny_model

from twinflow.runtime.build import build_engine
from twinflow.runtime.engine import Engine
from twinflow.runtime.engine_plan import EngineOptions
from twinflow.runtime.outputs import FinishReason, TokenLogprobs
from twinflow.runtime.request import Request

SHAPE = MixShape(vocab_size=TINY_VOCAB, longest_prompt=60, most_tokens=12)
ASKS = random_asks(60, SHAPE, seed=1)
MIXES = 40
# Blocks of four tokens: room for the longest request and no more, besides the null block.
TIGHT = 1 + (SHAPE.longest_prompt + SHAPE.most_tokens) // 4


@dataclass(slots=True)
class Result:
    """What a request produced."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that enters an engine at a step, perhaps with tokens it had elsewhere."""

    step: int
    ask: Ask
    emitted: tuple[int, ...] = ()


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> EngineOptions:
    """A roomy engine that never chunks, preempts or reuses."""
    return EngineOptions(
        model=write_tiny_model(tmp_path_factory.mktemp("models") / "tiny"),
        dtype="float32",
        max_model_len=SHAPE.longest_prompt + SHAPE.most_tokens,
        num_kv_blocks=64,
        enable_prefix_caching=False,
    )


@pytest.fixture(scope="module")
def alone(options: EngineOptions) -> list[Result]:
    """What each request produces on its own."""
    engine = make_engine(options)
    return [run(engine, [Arrival(0, ask)])[0] for ask in ASKS]


def make_engine(options: EngineOptions) -> Engine:
    return build_engine(options, clock=lambda: 0.0).engine


def run(engine: Engine, arrivals: Sequence[Arrival]) -> list[Result]:
    """Run requests to their ends, each from its step on; nothing may be left of them."""
    results = {f"r{index}": Result() for index in range(len(arrivals))}
    coming = sorted(enumerate(arrivals), key=lambda pair: pair[1].step, reverse=True)
    step = 0
    while coming or engine.runnable:
        while coming and coming[-1][1].step <= step:
            index, arrival = coming.pop()
            engine.add_request(make_request(f"r{index}", arrival))
        engine.step()
        step += 1
        outputs = engine.take_outputs()
        assert not outputs.failures
        for request_id, delta in outputs.deltas:
            result = results[request_id]
            assert result.finish_reason is None
            result.token_ids += delta.token_ids
            result.logprobs += delta.logprobs
            result.finish_reason = delta.finish_reason
    engine.check_integrity()
    assert engine.blocks.num_idle == engine.blocks.num_blocks
    return list(results.values())


def make_request(request_id: str, arrival: Arrival) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=arrival.ask.prompt,
        params=arrival.ask.params,
        eos_token_ids=(2,),
        output_token_ids=list(arrival.emitted),
    )


# What each engine is made to do, and how to tell that it did.
ENGINES: dict[str, dict[str, object]] = {
    "together": {},
    "chunked": {"max_num_batched_tokens": 9, "max_num_seqs": 8},
    "preempted": {"num_kv_blocks": TIGHT, "block_size": 4},
    "cached": {"enable_prefix_caching": True, "block_size": 4, "num_kv_blocks": 400},
    "chunked, preempted, cached": {
        "max_num_batched_tokens": 9,
        "max_num_seqs": 8,
        "num_kv_blocks": TIGHT,
        "block_size": 4,
        "enable_prefix_caching": True,
    },
    "a block per token": {"block_size": 1, "num_kv_blocks": 150, "enable_prefix_caching": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", ENGINES.values(), ids=ENGINES.keys())
def test_tokens_and_logprobs_do_not_depend_on_the_engine(
    options: EngineOptions, alone: list[Result], changes: dict[str, object]
) -> None:
    engine = make_engine(replace(options, **changes))  # type: ignore[arg-type]
    rng = random.Random(str(changes))
    for _ in range(MIXES):
        chosen = rng.sample(range(len(ASKS)), k=rng.randint(2, 12))
        arrivals = [Arrival(rng.randint(0, 10), ASKS[index]) for index in chosen]
        for index, result in zip(chosen, run(engine, arrivals), strict=True):
            assert result == alone[index], ASKS[index]
    assert_mechanisms(engine, changes)


def assert_mechanisms(engine: Engine, changes: dict[str, object]) -> None:
    """The engine did what its name says, or the test has shown nothing."""
    if changes.get("num_kv_blocks") == TIGHT:
        assert engine.counters.preemptions > MIXES / 2
    if changes.get("enable_prefix_caching"):
        assert engine.blocks.counters.hits > 0


@pytest.mark.slow
def test_a_request_that_moves_goes_on_as_if_it_had_not(
    options: EngineOptions, alone: list[Result]
) -> None:
    """A second worker is given the prompt and what the first one had generated."""
    engine = make_engine(replace(options, enable_prefix_caching=True, block_size=4))
    rng = random.Random(7)
    movable = [index for index, result in enumerate(alone) if len(result.token_ids) > 1]
    for _ in range(MIXES):
        chosen = rng.sample(movable, k=6)
        moves = [rng.randrange(1, len(alone[index].token_ids)) for index in chosen]
        arrivals = [
            Arrival(0, ASKS[index], tuple(alone[index].token_ids[:count]))
            for index, count in zip(chosen, moves, strict=True)
        ]
        for index, count, result in zip(chosen, moves, run(engine, arrivals), strict=True):
            assert result.token_ids == alone[index].token_ids[count:]
            assert result.logprobs == alone[index].logprobs[count:]
            assert result.finish_reason is alone[index].finish_reason
