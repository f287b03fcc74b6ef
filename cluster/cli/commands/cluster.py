"""`twinflow cluster`: files for `ray up`, from an example to one that will work."""

from pathlib import Path

from twinflow.cluster.cli.parser import Commands, Invocation, Parser
from twinflow.cluster.cli.sources import report
from twinflow.cluster.launch.ray_up import PROVIDERS
from twinflow.protos.errors import ConfigError

EPILOG = """\
examples:
  twinflow cluster example aws > cluster.yaml
  twinflow cluster check cluster.yaml
  ray up cluster.yaml
"""


def add_to(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "cluster",
        help="write and check files for `ray up`",
        description="Clusters that Ray starts with `ray up`.",
        epilog=EPILOG,
    )
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", required=True, parser_class=Parser
    )
    checked = actions.add_parser("check", help="say what is wrong with a file, all at once")
    checked.add_argument("file", metavar="FILE", type=Path)
    checked.runs(check)
    shown = actions.add_parser("example", help="write a file for a provider, to be edited")
    shown.add_argument("provider", metavar="{" + ",".join(PROVIDERS) + "}")
    shown.runs(show)


def check(invocation: Invocation) -> int:
    """Check a file.

    Raises:
        ConfigError: with everything that is wrong with it.
    """
    from twinflow.cluster.launch.ray_up.check import complaints, read  # noqa: PLC0415  not for --help

    path = Path(invocation.text("file", ""))
    found = [*invocation.complaints, *complaints(read(path))]
    if found:
        raise ConfigError(report([f"{path}: {one}" for one in found]))
    invocation.stdout.write(f"{path}: nothing is wrong with it.\n")
    return 0


def show(invocation: Invocation) -> int:
    """Write an example.

    Raises:
        ConfigError: there is none for the provider.
    """
    from twinflow.cluster.launch.ray_up.check import example  # noqa: PLC0415  not for --help

    if invocation.complaints:
        raise ConfigError(report(invocation.complaints))
    invocation.stdout.write(example(invocation.text("provider", "")))
    return 0
