"""Counts what an engine does in a step, in calls: a figure that no load of the machine changes."""

import sys
from collections import Counter
from types import FrameType

from twinflow.runtime.engine import Engine
from twinflow.runtime.request import Request
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.snapshot import take_snapshot


def calls_of_a_step(engine: Engine) -> dict[str, int]:
    """Functions of Python, and of C as Python calls them, in one step with its outputs."""
    counts: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:
        counts[event] += 1

    sys.setprofile(note)
    try:
        engine.step()
        engine.take_outputs()
        take_snapshot(engine)
    finally:
        sys.setprofile(None)
    return {"python": counts["call"], "c": counts["c_call"]}


def decoding(engine: Engine, sequences: int, prompt: int = 5) -> None:
    """Have the engine begin sequences, and take a few steps in which they decode."""
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    for number in range(sequences):
        tokens = [1 + (number + place) % 50 for place in range(prompt)]
        engine.add_request(
            Request(request_id=f"counted-{number}", prompt_token_ids=tokens, params=params)
        )
    for _ in range(4):
        engine.step()
        engine.take_outputs()
