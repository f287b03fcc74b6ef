"""What Ray reads from the environment, set for this process and the ones that Ray starts.

Ray reads most of it while it is imported: call `prepare` before. Reads nothing itself.
"""

import os
import secrets


def prepare() -> None:
    """Set Ray up for a cluster that is there already; its token is Ray's own affair."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"


def prepare_own() -> None:
    """Set Ray up for one deployment on this machine."""
    prepare()
    # Ray's own ports listen on every interface: only who has the token, which nobody but this
    # deployment knows, may use them.
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # By default Ray's actors give way to every other process of the machine.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - that is its name
