"""`twinflow serve MODEL`: checks the configuration and hands it to the launcher.

Everything that can be refused without starting anything is refused here. Starting, serving and
draining are the launcher's.
"""

import socket
from collections.abc import Callable

from twinflow.cluster.cli import environment
from twinflow.cluster.cli.flags import add_flags, flag_name
from twinflow.cluster.cli.parser import Commands, Invocation
from twinflow.cluster.cli.progress import ServeUI, TerminalUI
from twinflow.cluster.cli.sources import report, resolve
from twinflow.cluster.config import ServeConfig
from twinflow.protos.errors import ConfigError

DESCRIPTION = """\
Serve MODEL over HTTP (the OpenAI API) and gRPC until Ctrl-C.

Prompts are computed by the workers of the prefill pool, their continuations by those of the decode
pool; the KV cache travels from one to the other. Workers of the mixed pool do both.
"""

EPILOG = """\
sources:
  A flag wins over the environment, the environment over --config FILE, the file over the default.
  The file is YAML or JSON and holds flag names without their dashes in front, as `max-model-len:
  32k`. From the environment come, and no other name that begins with TWINFLOW_ is accepted:
{variables}

devices:
  With --device cuda each rank of a worker has a GPU of its own, and KV caches travel over NCCL;
  with auto it is so on a machine whose GPUs torch can use. On the CPU all ranks of all workers
  share cores and memory evenly.

ranks:
  With --tensor-parallel-size N a worker is N processes of this machine that compute the model
  together. N must divide the query heads, and divide the key/value heads or be a multiple of them.
  If one of them dies or freezes, its worker is lost, and its requests go on at the other workers.

stopping:
  After Ctrl-C or SIGTERM new requests are refused and running ones may finish, for at most
  --shutdown-timeout. A second one ends them with an error that their clients get, a third kills.
  The exit status is 0, or 130 after a second one; it is 1 if serving failed and 2 if settings or
  model were refused.

numbers:
  Counts may be written as 32k (32000) or 32K (32768), memory as 4GiB or 4000MB.

examples:
  twinflow serve ./smollm2-135m                         one prefill and one decode worker
  twinflow serve ./smollm2-135m --prefill 2 --decode 2  two of each
  twinflow serve ./smollm2-135m --mixed 1               one worker that does both
  twinflow serve ./smollm2-135m --mixed 1 --tensor-parallel-size 3   a worker of three ranks
  twinflow serve ./smollm2-135m --device cpu            on the CPU, even if there is a GPU
  twinflow serve ./smollm2-135m --launcher local        plain processes, without Ray
  TWINFLOW_API_KEY=$(cat key) twinflow serve ./smollm2-135m --host 0.0.0.0
"""

Launch = Callable[[ServeConfig, ServeUI], int]


def add_to(commands: Commands) -> None:
    """Describe the command."""
    variables = "\n".join(
        f"    {name:<28} {meaning}" for name, meaning in environment.VARIABLES.items()
    )
    parser = commands.add_parser(
        "serve",
        usage="twinflow serve MODEL [options]",
        help="serve a model over HTTP and gRPC",
        description=DESCRIPTION,
        epilog=EPILOG.format(variables=variables),
    )
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file with settings")
    add_flags(parser)
    parser.runs(run)


def launch(config: ServeConfig, ui: ServeUI) -> int:
    """Start what `config` describes and serve until it is told to stop."""
    from twinflow.cluster.launch.serve import serve  # noqa: PLC0415  Ray is loaded to serve, not for --help

    return serve(config, ui)


def run(invocation: Invocation, launch: Launch = launch) -> int:
    """Serve until interrupted; the exit status is the launcher's.

    Raises:
        ConfigError: before anything has started, with all that is wrong.
    """
    config = resolve(invocation.given, invocation.environ, invocation.complaints)
    taken = complaints_about_ports(config)
    if taken:
        raise ConfigError(report(taken))
    return launch(config, TerminalUI(invocation.stdout))


def complaints_about_ports(config: ServeConfig) -> list[str]:
    """A complaint for each port that cannot be listened on now, and none for port 0.

    A port may still be taken before the front doors bind it; then they fail as clearly. This check
    is made because it costs nothing and a start takes seconds.
    """
    complaints = []
    for field in ("port", "grpc_port"):
        port = getattr(config, field)
        try:
            _try_to_listen(config.host, port)
        except socket.gaierror as error:
            return [f"--host {config.host}: cannot be resolved ({error.strerror})"]
        except OSError as error:
            complaints.append(
                f"{flag_name(field)} {port}: cannot listen on {config.host} ({error.strerror}); "
                "choose another, or 0 for a free one"
            )
    return complaints


def _try_to_listen(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        # As the servers do: a port whose last connections are still winding down is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)
