"""Devices that are described instead of measured: published figures and where they are from.

Good enough to compare policies on a device that nobody has at hand; not a substitute for
`twinflow profile` on the device. Descriptions that are shipped lie in `devices/`.
"""

from pathlib import Path
from typing import Annotated

import msgspec

from twinflow.protos.errors import ConfigError
from twinflow.runtime.cost.contention import Contention
from twinflow.runtime.cost.curve import SpeedCurve
from twinflow.runtime.cost.model import CostModel, Curves, Prices
from twinflow.runtime.cost.shape import ModelShape

DEVICES = Path(__file__).parent / "devices"

Positive = Annotated[float, msgspec.Meta(gt=0.0)]
Units = Annotated[int, msgspec.Meta(ge=1)]


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device, as described in a JSON file.

    Attributes:
        name: what it is called.
        sources: where each figure is from, by the name of the figure.
        matrix_flops: operations per second that large matrix products achieve.
        attention_flops: operations per second that attention of prompts achieves.
        memory_bytes_per_s: that a copy achieves.
        memory_bytes: of memory.
        step_s: what a step takes besides its work.
        link_bytes_per_s: to another device of the kind.
        processors: units that the device can be divided into.
        processor_step: units by which shares can differ.
        compute: speed of arithmetic on a share.
        memory: speed of traffic on a share.
        contention: the most by which two lanes slow each other's traffic down, as a part of the
            time it takes.
    """

    name: str
    sources: dict[str, str]
    matrix_flops: Positive
    attention_flops: Positive
    memory_bytes_per_s: Positive
    memory_bytes: Positive
    step_s: Positive
    link_bytes_per_s: Positive
    processors: Units
    processor_step: Units
    compute: SpeedCurve
    memory: SpeedCurve
    contention: Annotated[float, msgspec.Meta(ge=0.0)]

    def cost_model(self, shape: ModelShape) -> CostModel:
        """Step times of a model on the device, each kind of work at its published speed."""
        arithmetic, traffic = 1.0 / self.matrix_flops, 1.0 / self.memory_bytes_per_s
        prices = Prices(
            step=self.step_s,
            dense_flop=arithmetic,
            dense_byte=traffic,
            expert_flop=arithmetic,
            expert_byte=traffic,
            prefill_pair=1.0 / self.attention_flops,
            prefill_kv=traffic,
            decode_kv=traffic,
        )
        curves, contention = Curves(self.compute, self.memory), Contention(self.contention)
        return CostModel(shape, prices, curves, contention)


def shipped_devices() -> tuple[str, ...]:
    """Names that `load_device` knows."""
    return tuple(sorted(path.stem for path in DEVICES.glob("*.json")))


def load_device(name: str) -> Device:
    """Read a description: one that is shipped, by its name, or a JSON file.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    path = DEVICES / f"{name}.json" if name in shipped_devices() else Path(name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Device)
    except OSError as error:
        raise ConfigError(
            f"--device {name}: is neither one of {', '.join(shipped_devices())} nor a file that "
            f"can be read ({error.strerror})"
        ) from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"{path}: is no description of a device: {error}") from error
