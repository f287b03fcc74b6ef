"""Which backend is chosen, and what is said when it cannot be had."""

import pytest

from twinflow.parallel.partition.backends.base import Place
from twinflow.parallel.partition.backends.none import Undivided
from twinflow.parallel.partition.backends.registry import (
    check_backend,
    choose_backend,
    register_backend,
)
from twinflow.protos.errors import ConfigError


def test_none_is_a_choice_and_needs_no_reason() -> None:
    choice = choose_backend("none", Place("cpu", (0, 1)))
    assert (choice.backend.name, choice.reason) == ("none", "")
    assert choice.backend.grid is None


@pytest.mark.parametrize("wanted", ["cores", "auto"])
def test_too_few_cores_leave_one_lane_with_the_reason(wanted: str) -> None:
    choice = choose_backend(wanted, Place("cpu", (0,)))
    assert (choice.backend.name, choice.wanted) == ("none", wanted)
    assert "need two processor cores" in choice.reason


def test_core_sets_are_for_cpus() -> None:
    assert "computes on cuda" in choose_backend("cores", Place("cuda:0")).reason


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="--lanes mps: unknown; choose one of"):
        choose_backend("mps", Place("cpu"))
    check_backend("auto")


@pytest.mark.parametrize("name", ["none", "auto"])
def test_a_name_is_taken_once(name: str) -> None:
    with pytest.raises(ValueError, match="already registered"):
        register_backend(name, Undivided)
