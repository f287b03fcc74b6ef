"""Whether a drafter's KV is handed over follows from what was measured."""

from dataclasses import replace

import pytest

from twinflow.runtime.speculative.draft_arrival import Arrival, ArrivalChoice

# A pass takes 0.1 s, the bytes 0.05 s.
LOADED = Arrival(tokens=1000, num_bytes=10**6, decoding=8, awaited=0)
TOKEN_S, LINK = 1e-4, (0.05, 1e6)


def hands_over(choice: ArrivalChoice, arrival: Arrival, token_s: float | None = TOKEN_S) -> bool:
    return choice.hand_over(arrival, token_s=token_s, link=LINK)


def test_the_kv_comes_where_many_would_wait_for_the_drafter() -> None:
    choice = ArrivalChoice("auto")
    assert hands_over(choice, LOADED)
    assert not hands_over(choice, replace(LOADED, decoding=0))
    assert not hands_over(choice, replace(LOADED, awaited=8))
    assert not hands_over(choice, replace(LOADED, num_bytes=10**9))
    assert not hands_over(choice, LOADED, token_s=1e-7)


def test_what_was_not_measured_is_computed() -> None:
    choice = ArrivalChoice("auto")
    assert not hands_over(choice, LOADED, token_s=None)
    assert not choice.hand_over(LOADED, token_s=TOKEN_S, link=(0.0, 0.0))


def test_hand_overs_that_take_long_end() -> None:
    choice = ArrivalChoice("auto")
    choice.note(LOADED, token_s=TOKEN_S, elapsed_s=0.2, link_s=0.05)
    assert hands_over(choice, LOADED)
    for _ in range(8):
        choice.note(LOADED, token_s=TOKEN_S, elapsed_s=3.0, link_s=0.05)
    assert not hands_over(choice, LOADED)
    assert hands_over(choice, replace(LOADED, decoding=64))


@pytest.mark.parametrize(("wanted", "expected"), [("rebuild", False), ("transfer", True)])
def test_the_operator_may_say(wanted: str, expected: bool) -> None:
    choice = ArrivalChoice(wanted)  # type: ignore[arg-type]
    for arrival in (LOADED, replace(LOADED, decoding=0)):
        assert hands_over(choice, arrival) == expected
        assert hands_over(choice, arrival, token_s=None) == expected
