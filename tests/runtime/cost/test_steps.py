"""Which steps are measured: within bounds, of all kinds, and checked on others."""

import pytest

from twinflow.runtime.cost.steps import STAIRS, Bounds, Steps, checking_steps, fitting_steps

BOUNDS = [Bounds(1024, 64, 4096, 60_000), Bounds(32, 4, 200, 2000), Bounds(256, 16, 500, 4000)]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_steps_stay_within_bounds(bounds: Bounds) -> None:
    for steps in (*fitting_steps(bounds), *checking_steps(bounds)):
        assert steps.rows + steps.batch <= bounds.rows
        assert steps.batch + (steps.rows > 0) <= bounds.batch
        assert max(steps.start + steps.rows, steps.context) < bounds.context
        assert steps.start + steps.rows + steps.batch * steps.context < bounds.kv_tokens


@pytest.mark.parametrize("bounds", BOUNDS)
def test_what_checks_was_not_fitted_to(bounds: Bounds) -> None:
    fitting, checking = fitting_steps(bounds), checking_steps(bounds)
    assert len(set(fitting)) == len(fitting) and len(set(checking)) == len(checking)
    assert checking and not set(fitting) & set(checking)


def test_small_batches_are_fitted_to_one_by_one_and_checked_in_other_contexts() -> None:
    fitting, checking = (
        [steps for steps in found if steps.batch and not steps.rows]
        for found in (fitting_steps(BOUNDS[0]), checking_steps(BOUNDS[0]))
    )
    fitted = {steps.batch for steps in fitting}
    assert fitted >= set(range(1, STAIRS + 1))
    assert {steps.batch for steps in checking if steps.batch <= STAIRS} <= fitted
    assert not {steps.context for steps in fitting} & {steps.context for steps in checking}


def test_every_kind_is_there() -> None:
    def kind(steps: Steps) -> tuple[bool, bool, bool, bool]:
        return steps.rows > 0, steps.start > 0, steps.batch > 0, steps.layered

    for found in (fitting_steps(BOUNDS[0]), checking_steps(BOUNDS[0])):
        kinds = set(map(kind, found))
        assert (True, False, False, False) in kinds  # prompts
        assert (True, True, False, False) in kinds  # later chunks of prompts
        assert (False, False, True, False) in kinds  # decoding
        assert (True, False, True, False) in kinds  # both
        assert (True, False, True, True) in kinds  # both, by layers
