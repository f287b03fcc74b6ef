"""What NCCL links need in the environment of their process; importing it does not load torch."""

from collections.abc import Mapping
from types import MappingProxyType

# 0: errors are reported to whoever waits and never end the process.
NCCL_ENVIRONMENT: Mapping[str, str] = MappingProxyType({"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"})
