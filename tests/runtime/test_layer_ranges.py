"""Cuts between layer ranges, and hidden states that wait between steps."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twinflow.runtime.layer_ranges import Frontier, FrontierPlace, LayerSegment, layer_segments

LAYERS = 7
RANGES = st.lists(
    st.tuples(st.integers(0, LAYERS - 1), st.integers(1, LAYERS)).filter(lambda r: r[0] < r[1]),
    min_size=1,
    max_size=5,
)


def test_decode_rows_with_one_layer_group_of_prompts() -> None:
    assert layer_segments([(0, 6), (2, 4), (0, 6), (2, 4)]) == [
        LayerSegment(0, 2, (0, 2)),
        LayerSegment(2, 4, (0, 1, 2, 3)),
        LayerSegment(4, 6, (0, 2)),
    ]


def test_layers_that_nobody_crosses_are_left_out() -> None:
    assert layer_segments([(0, 1), (3, 5)]) == [LayerSegment(0, 1, (0,)), LayerSegment(3, 5, (1,))]


@given(ranges=RANGES)
def test_every_group_crosses_its_layers_once_and_in_order(ranges: list[tuple[int, int]]) -> None:
    segments = layer_segments(ranges)
    for index, (start, end) in enumerate(ranges):
        crossed = [layer for s in segments if index in s.groups for layer in range(s.first, s.end)]
        assert crossed == list(range(start, end))
    assert all(a.end <= b.first for a, b in pairwise(segments))


PLACE = FrontierPlace(start=4, count=2, layer=1)


def test_hidden_states_are_handed_out_once_and_as_they_were() -> None:
    frontier, hidden = Frontier(), torch.arange(6.0).view(2, 3)
    frontier.put("r/0", PLACE, hidden)
    hidden.zero_()
    assert torch.equal(frontier.take("r/0", PLACE), torch.arange(6.0).view(2, 3))
    assert len(frontier) == 0
    with pytest.raises(ValueError, match=r"'r/0' is to go on at .*layer=1.* and waits at None"):
        frontier.take("r/0", PLACE)


@pytest.mark.parametrize(
    "other", [FrontierPlace(4, 2, 2), FrontierPlace(4, 1, 1), FrontierPlace(0, 2, 1)]
)
def test_other_rows_cannot_go_on(other: FrontierPlace) -> None:
    frontier = Frontier()
    frontier.put("r/0", PLACE, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="is to go on at"):
        frontier.take("r/0", other)


@pytest.mark.parametrize("sequence", ["", "r/0"])
def test_rows_without_a_name_or_over_others_are_not_kept(sequence: str) -> None:
    frontier = Frontier()
    frontier.put("r/0", PLACE, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="cannot be kept"):
        frontier.put(sequence, PLACE, torch.zeros(2, 3))


def test_forgetting() -> None:
    frontier = Frontier()
    frontier.put("r/0", PLACE, torch.zeros(2, 3))
    assert frontier.forget("r/0")
    assert not frontier.forget("r/0")
    assert len(frontier) == 0
