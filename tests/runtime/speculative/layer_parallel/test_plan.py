"""Plans of layers: what they always are, and that the measured one is the best of all."""

import itertools
import random

import pytest

from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan


@pytest.mark.parametrize("layers", range(1, 14))
def test_a_uniform_plan_has_all_layers_with_few_alone(layers: int) -> None:
    for size, first, last in itertools.product((1, 2, 3, 4, 5, 20), range(3), range(3)):
        if first + last > layers:
            with pytest.raises(ValueError, match="cannot stay alone"):
                LayerPlan.uniform(layers, size, first, last)
            continue
        plan = LayerPlan.uniform(layers, size, first, last)
        assert [layer for group in plan.groups for layer in group] == list(range(layers))
        assert plan.sizes[:first] == (1,) * first
        assert plan.sizes[len(plan.sizes) - last :] == (1,) * last
        middle = plan.sizes[first : plan.steps - last]
        assert all(each == size for each in middle[:-1])
        assert not middle or 1 <= middle[-1] <= size
        assert plan.steps == first + last + -(-(layers - first - last) // size)
        assert plan.is_serial == (max(plan.sizes) == 1)


def test_groups_of_one_are_serial() -> None:
    assert LayerPlan.uniform(7, 1) == LayerPlan.serial(7)
    assert LayerPlan.serial(7).is_serial


def partitions(total: int, parts: int) -> list[tuple[int, ...]]:
    if parts == 0:
        return [()] if total == 0 else []
    heads = range(1, total + 1)
    return [(head, *rest) for head in heads for rest in partitions(total - head, parts - 1)]


@pytest.mark.parametrize("seed", range(8))
def test_a_measured_plan_has_the_least_error_of_all(seed: int) -> None:
    rng = random.Random(seed)
    layers, first, last, largest = rng.randint(3, 9), rng.randint(0, 1), rng.randint(0, 1), 4
    errors = {
        (start, size): rng.random()
        for size in range(2, largest + 1)
        for start in range(layers - size + 1)
    }

    def error(plan: LayerPlan) -> float:
        found = ((group.start, len(group)) for group in plan.groups if len(group) > 1)
        return sum(errors[one] for one in found)

    between = layers - first - last
    for middle in range(1, between + 1):
        every = [
            LayerPlan.of_sizes((*(1,) * first, *sizes, *(1,) * last))
            for sizes in partitions(between, middle)
            if max(sizes) <= largest
        ]
        steps = first + middle + last
        if not every:
            with pytest.raises(ValueError, match=f"do not make {steps} steps"):
                LayerPlan.measured(layers, steps, errors, first, last)
            continue
        plan = LayerPlan.measured(layers, steps, errors, first, last)
        assert plan.steps == steps
        assert error(plan) == pytest.approx(min(map(error, every)))


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="groups have at least one layer, not 0"):
        LayerPlan.uniform(4, 0)
    with pytest.raises(ValueError, match="4 layers cannot be computed in 5 steps"):
        LayerPlan.measured(4, 5, {})
    with pytest.raises(ValueError, match="cannot be computed in 2 steps"):
        LayerPlan.measured(4, 2, {}, 1, 1)
    with pytest.raises(ValueError, match="are not all layers in order"):
        LayerPlan((range(2), range(3, 4)))
