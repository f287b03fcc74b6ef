"""What every policy owes in any history: random traces under virtual time, no tensors.

Each plan is checked by `CheckedScheduler`: rows within budget and seats, blocks that are there,
decode rows first and through all layers, purity, order. `FakeExecutor` checks that every token is
computed in every layer once and in order, and that nothing unfinished is read; `History` that
frontiers are kept exactly as long as their waves, that everybody gets the tokens of a computation
in one go, and that everything is given back.
"""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import EngineSpec
from tests.support.histories import History
from tests.support.schedulers import LinearTimes

POLICIES = st.fixed_dictionaries(
    {
        "scheduler": st.sampled_from(["chunked", "layered"]),
        "prefill_order": st.sampled_from(["fcfs", "spf"]),
        "admission": st.sampled_from(["aggressive", "conservative", "past-future"]),
        "tbt_objective": st.sampled_from([None, 0.1, 2.0, 5.0]),
        "ttft_objective": st.sampled_from([0.5, 5.0]),
        "times": st.sampled_from([None, LinearTimes()]),
    }
)
LIMITS = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(12, 40),
        "max_num_batched_tokens": st.integers(4, 32),
        "max_num_seqs": st.integers(1, 4),
    }
)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(seed=st.integers(0, 2**32), policy=POLICIES, limits=LIMITS)
def test_every_plan_of_any_history(
    seed: int, policy: dict[str, Any], limits: dict[str, Any]
) -> None:
    spec = EngineSpec(max_model_len=44, **policy, **limits)
    History(seed, spec, order=spec.prefill_order).play(steps=40)
