"""What the device is called that a cost model is measured on."""

import platform
from pathlib import Path

import torch


def device_name(device: str) -> str:
    """What the processor or accelerator is called.

    Args:
        device: `cpu`, or a CUDA device that is there.
    """
    if device != "cpu":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
