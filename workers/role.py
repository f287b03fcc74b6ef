"""What a worker is meant for, by the name that configurations use and on the wire.

A role says which requests are sent to a worker, not what it can do: every worker holds both flows.
"""

from typing import Literal

from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb

Role = Literal["prefill", "decode", "mixed"]

ROLES: dict[Role, pb.Role] = {
    "prefill": pb.ROLE_PREFILL,
    "decode": pb.ROLE_DECODE,
    "mixed": pb.ROLE_MIXED,
}
ROLE_NAMES = {value: name for name, value in ROLES.items()}
