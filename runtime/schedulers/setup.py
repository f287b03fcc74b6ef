"""What scheduling policies are put together from."""

from dataclasses import dataclass

from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.base import StepTimes
from twinflow.runtime.schedulers.admission import create_admission
from twinflow.runtime.schedulers.admission.base import Admission
from twinflow.runtime.schedulers.base import SchedulerLimits
from twinflow.runtime.schedulers.orders import create_order
from twinflow.runtime.schedulers.orders.base import PrefillOrder


@dataclass(frozen=True, slots=True)
class SchedulerSetup:
    """The parts of a policy.

    Attributes:
        limits: bounds of every plan.
        order: of prompts.
        admission: how much memory must be left when a request comes in.
        times: predicts how long steps take; None if that is not known.
        tbt_objective: longest wanted time between two tokens of a request, in seconds.
        ttft_objective: longest wanted time to a first token, in seconds.
    """

    limits: SchedulerLimits
    order: PrefillOrder
    admission: Admission
    times: StepTimes | None = None
    tbt_objective: float | None = None
    ttft_objective: float | None = None

    @classmethod
    def of(
        cls, config: EngineConfig, num_layers: int, times: StepTimes | None = None
    ) -> "SchedulerSetup":
        """What an engine's configuration asks for.

        Args:
            config: of the engine.
            num_layers: of the model.
            times: of the device, if known.

        Raises:
            ConfigError: a part has a name that nobody knows.
        """
        limits = SchedulerLimits(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            num_layers=num_layers,
            watermark_blocks=max(1, int(config.watermark * config.num_blocks)),
            rows_per_seat=1 + config.num_speculative_tokens,
        )
        return cls(
            limits=limits,
            order=create_order(config.prefill_order, config.ttft_objective),
            admission=create_admission(config.admission, limits),
            times=times,
            tbt_objective=config.tbt_objective,
            ttft_objective=config.ttft_objective,
        )
