"""What a simulated worker is made of, from a profile or from the description of a device."""

from dataclasses import dataclass

from twinflow.parallel.partition.layout import Grid
from twinflow.protos.errors import ConfigError
from twinflow.runtime.cost.device import Device
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.cost.profile import Profile
from twinflow.runtime.cost.shape import ModelShape

# Left to weights and KV; the rest is for activations and workspaces.
_USABLE_MEMORY = 0.9
# What `twinflow serve` gives an engine unless told otherwise.
_PROFILED_KV_BYTES = float(1 << 30)
# Workers of one machine, through its memory; not measured.
_PROFILED_LINK_BYTES_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Hardware:
    """A worker's device.

    Attributes:
        times: of its steps.
        kv_bytes: for KV.
        link_bytes_per_s: to other workers.
        grid: layouts for two lanes; None if it cannot be divided, or was not measured divided.
    """

    times: CostModel
    kv_bytes: float
    link_bytes_per_s: float
    grid: Grid | None

    @classmethod
    def profiled(cls, profile: Profile) -> "Hardware":
        """The device that a profile was measured on; its processors are those that lanes were
        measured on, else the threads."""
        threads, lanes = profile.key.threads, profile.lanes
        grid = lanes.grid if lanes else None
        if grid is None and threads > 1 and profile.times.curves:
            grid = Grid.of(threads)
        link = _PROFILED_LINK_BYTES_PER_S
        return cls(profile.times, _PROFILED_KV_BYTES, link, grid)

    @classmethod
    def described(cls, device: Device, shape: ModelShape) -> "Hardware":
        """A described device that holds a model.

        Raises:
            ConfigError: the model does not fit.
        """
        experts = shape.num_experts * shape.expert_bytes
        weights = shape.num_layers * (shape.dense_bytes + experts) + 2 * shape.head_bytes
        room = _USABLE_MEMORY * device.memory_bytes - weights
        if room <= 0:
            raise ConfigError(
                f"--device {device.name}: the model's weights need {weights / 1e9:.0f} GB, the "
                f"device has {device.memory_bytes / 1e9:.0f} GB"
            )
        # As the driver would divide it, whose parts are no smaller than what they differ by.
        step, processors = device.processor_step, device.processors
        grid = Grid.of(processors, step, step) if processors >= 2 * step else None
        times = device.cost_model(shape)
        return cls(times, room, device.link_bytes_per_s, grid)
