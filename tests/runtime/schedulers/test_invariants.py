"""What every policy owes in any history: random traces under virtual time, no tensors.

Each plan is checked by `CheckedScheduler`: rows within budget and seats, blocks that are there,
decode rows first and through all layers, purity, order. `FakeExecutor` checks that every token is
computed in every layer once and in order, and that nothing unfinished is read; `History` that
frontiers are kept exactly as long as their waves, that everybody gets the tokens of a computation
in one go, and that everything is given back.
"""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import EngineSpec
from tests.support.histories import History
from tests.support.schedulers import LinearTimes

SPECS = st.builds(
    EngineSpec,
    max_model_len=st.just(44),
    num_blocks=st.integers(12, 40),
    max_num_batched_tokens=st.integers(4, 32),
    max_num_seqs=st.integers(1, 4),
    admission=st.sampled_from(["aggressive", "conservative", "past-future"]),
    tbt_objective=st.sampled_from([None, 0.1, 2.0, 5.0]),
    ttft_objective=st.sampled_from([0.5, 5.0]),
    times=st.sampled_from([None, LinearTimes()]),
)
SCHEDULERS = ("chunked", "layered", "laps")
ORDERS = ("fcfs", "spf")


def play(seed: int, spec: EngineSpec, **policy: Any) -> None:
    spec = replace(spec, **policy)
    # Within its two classes alone, prompts of laps come in order.
    order = None if spec.scheduler == "laps" else spec.prefill_order
    History(seed, spec, order=order).play(steps=40)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    spec=SPECS,
    scheduler=st.sampled_from(SCHEDULERS),
    prefill_order=st.sampled_from(ORDERS),
)
def test_every_plan_of_some_histories(seed: int, spec: EngineSpec, **policy: str) -> None:
    play(seed, spec, **policy)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    spec=SPECS,
    scheduler=st.sampled_from(SCHEDULERS),
    tokens=st.integers(1, 5),
)
def test_every_plan_of_some_histories_with_proposals(
    seed: int, spec: EngineSpec, scheduler: str, tokens: int
) -> None:
    rows = max(spec.max_num_batched_tokens, spec.max_num_seqs * (1 + tokens))
    spec = replace(spec, num_speculative_tokens=tokens, max_num_batched_tokens=rows)
    play(seed, spec, scheduler=scheduler)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("prefill_order", ORDERS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_plan_of_thousands_of_histories(scheduler: str, prefill_order: str) -> None:
    @settings(max_examples=400, deadline=None)
    @given(seed=st.integers(0, 2**32), spec=SPECS)
    def play_many(seed: int, spec: EngineSpec) -> None:
        play(seed, spec, scheduler=scheduler, prefill_order=prefill_order)

    play_many()
