"""Which CUDA devices torch sees. As a program, tells a process that must not load torch.

$ python -m twinflow.runtime.cuda_devices
{"free_memory": [84418297856], "problem": ""}
"""

import json
import sys

import torch


def survey() -> tuple[list[int], str]:
    """Free bytes of every CUDA device, and why there is none if there is none."""
    count = torch.cuda.device_count()
    if count:
        return [torch.cuda.mem_get_info(device)[0] for device in range(count)], ""
    if torch.version.cuda is None:
        return [], f"torch {torch.__version__} is built without CUDA"
    return [], f"torch {torch.__version__} sees no CUDA device: check driver, CUDA_VISIBLE_DEVICES"


if __name__ == "__main__":
    free_memory, problem = survey()
    sys.stdout.write(json.dumps({"free_memory": free_memory, "problem": problem}) + "\n")
