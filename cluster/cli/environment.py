"""The one place where twinflow reads the environment.

A handful of settings may come from it; everything else is a flag or a line of the config file. A
variable that begins like ours and is not listed here is an error, because a setting that somebody
believes to be in force must be in force. Values are checked where all settings are
(`twinflow.cluster.config`).
"""

import os
from collections.abc import Mapping

from twinflow.runtime.nearest import did_you_mean

PREFIX = "TWINFLOW_"

VARIABLES: Mapping[str, str] = {
    "TWINFLOW_ADMIN_TOKEN": "admin tokens, comma-separated; admin sends the first",
    "TWINFLOW_API_KEY": "API keys, comma-separated; chat and status send the first",
    "TWINFLOW_CONFIG": "config file of serve, as --config",
    "TWINFLOW_GRPC_PORT": "as --grpc-port",
    "TWINFLOW_HOST": "as --host",
    "TWINFLOW_LAUNCHER": "as --launcher",
    "TWINFLOW_LOG_LEVEL": "as --log-level",
    "TWINFLOW_PORT": "as --port",
    "TWINFLOW_TARGET": "server of chat and admin, as --target",
    "TWINFLOW_THREADS_PER_WORKER": "as --threads-per-worker",
    "TWINFLOW_URL": "status's server, as --url",
}


def process_environment() -> Mapping[str, str]:
    """The environment of this process, a copy."""
    return dict(os.environ)


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The known twinflow variables that are set, by name."""
    return {name: environ[name] for name in VARIABLES if name in environ}


def key_to_send(environ: Mapping[str, str]) -> str:
    """The API key that a client command sends unless told another; empty for none."""
    return environ.get("TWINFLOW_API_KEY", "").split(",")[0].strip()


def admin_token_to_send(environ: Mapping[str, str]) -> str:
    """The admin token that a command sends unless told another; empty for none."""
    return environ.get("TWINFLOW_ADMIN_TOKEN", "").split(",")[0].strip()


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A complaint about every variable that begins like ours and means nothing."""
    return [
        f"{name}: unknown environment variable{did_you_mean(name, VARIABLES, prefix=PREFIX)}"
        for name in sorted(environ)
        if name.startswith(PREFIX) and name not in VARIABLES
    ]
