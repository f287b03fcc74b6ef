"""On which device a model is served, and in which number format."""

import torch

from twinflow.protos.errors import ConfigError


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ConfigError: it is neither `cpu` nor a CUDA device of this machine.
    """
    kind, _, number = device.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(kind, 0)
    if not (number or "0").isdecimal() or int(number or "0") >= count:
        raise ConfigError(
            f"device {device!r}: use cpu, or cuda on a machine that has it "
            f"({torch.cuda.device_count()} CUDA devices here)"
        )


def resolve_dtype(requested: str, checkpoint_dtype: str, device: str) -> str:
    """The dtype to serve in.

    `auto` takes bfloat16 for a bfloat16 checkpoint, except on a CPU without bfloat16 arithmetic;
    everything else is served in float32, which holds every value of every checkpoint dtype.
    """
    if requested != "auto":
        if requested not in ("float32", "bfloat16"):
            raise ConfigError(f"--dtype {requested}: use auto, float32 or bfloat16")
        return requested
    native = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if checkpoint_dtype == "bfloat16" and native else "float32"
