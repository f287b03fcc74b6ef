"""What the partition of a device asks of the cost model: two steps on every layout."""

from dataclasses import dataclass

from twinflow.parallel.partition.layout import Layout
from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.cost.lanes import Lane, LaneTimes


@dataclass(frozen=True, slots=True)
class StepForecast:
    """A `Forecast` of two steps.

    Attributes:
        times: of the device.
        prefill: the prefill lane's step.
        decode: the decode lane's step.
    """

    times: LaneTimes
    prefill: StepLoad
    decode: StepLoad

    def alone(self) -> tuple[float, float]:
        """See `Forecast.alone`."""
        return self.times.seconds(Lane(self.prefill, 1.0)), self.times.seconds(
            Lane(self.decode, 1.0)
        )

    def split(self, layout: Layout) -> tuple[float, float]:
        """See `Forecast.split`."""
        return self.times.pair(
            Lane(self.prefill, layout.prefill_share), Lane(self.decode, layout.decode_share)
        )
