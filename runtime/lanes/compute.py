"""Computes one step, and catches what goes wrong in it."""

from twinflow.runtime.executor import Executor
from twinflow.runtime.lanes.base import Step, StepOutcome


def compute(executor: Executor, step: Step) -> StepOutcome:
    """Run a step on this thread; an error is part of the outcome."""
    try:
        results = executor.execute(step.work, step.on_layers)
        return StepOutcome(step, results, executor.take_traffic())
    except Exception as error:  # noqa: BLE001 - the fence between a step and the engine
        return StepOutcome(step, error=error)
