"""`twinflow admin`: pools, workers and requests of a running server, and changes of them.

Everything goes through `twinflow.Admin`; this prints what it says. A change shows its events as
they come, until everything is as wanted.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TextIO, cast

from twinflow.cluster.cli import environment
from twinflow.cluster.cli.commands.chat import DEFAULT_TARGET
from twinflow.cluster.cli.parser import Commands, Invocation, Parser
from twinflow.cluster.cli.sources import report
from twinflow.cluster.cli.tables import aligned
from twinflow.cluster.client import Admin
from twinflow.cluster.client.admin import DrainName, PoolName
from twinflow.cluster.client.cluster_view import (
    DRAINS,
    ROLES,
    AutoscalingInfo,
    Cluster,
    Event,
    Explanation,
    PoolInfo,
    SequenceInfo,
    WorkerInfo,
)
from twinflow.protos.errors import ConfigError, Unavailable

EPILOG = """\
token:
  The server takes operators' calls only if it was started with an admin token: set
  TWINFLOW_ADMIN_TOKEN for both commands.

examples:
  twinflow admin workers
  twinflow admin scale decode 2
  twinflow admin autoscale decode --min 1 --max 8 --tpot-ms 40
  twinflow admin flip prefill-1 decode
  twinflow admin drain decode-0 --replace --drain migrate
  twinflow admin restart
  twinflow admin watch
  twinflow admin explain chatcmpl-1eb26398-812c-49c1-936e-1ccc49f5d32b
"""

_MAX_POOL = 1024
# What one of the commands below does with a connection.
Act = Callable[[Admin, Invocation], None]


def add_to(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "admin",
        help="change pools and workers of a running server",
        description="Look at pools, workers and requests of a running server, and change pools.",
        epilog=EPILOG,
    )
    acts: Commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(acts, "workers", "show pools and workers", _show)
    scale = _add(acts, "scale", "give a pool another size", _scale)
    scale.add_argument("pool", metavar="POOL", help=_one_of(ROLES))
    scale.add_argument("size", metavar="N", help="workers that it shall have")
    autoscale = _add(acts, "autoscale", "let a pool size itself by an objective", _autoscale)
    autoscale.add_argument("pool", metavar="POOL", help=_one_of(ROLES))
    autoscale.add_argument("--min", metavar="N", help="workers that it always has [default: 1]")
    autoscale.add_argument("--max", metavar="N", help="workers that it never has more of")
    for name, what, pools in (("ttft", "first", "prefill"), ("tpot", "further", "decode")):
        text = f"what nine of ten {what} tokens may take; {pools} and mixed pools"
        autoscale.add_argument(f"--{name}-ms", metavar="MS", help=text)
    autoscale.add_argument("--off", action="store_true", help="let it keep the size that it has")
    flip = _add(acts, "flip", "move a worker to another pool", _flip)
    flip.add_argument("worker", metavar="WORKER", help="its name")
    flip.add_argument("role", metavar="POOL", help=_one_of(ROLES))
    drain = _add(acts, "drain", "take a worker out of service and end it", _drain)
    drain.add_argument("worker", metavar="WORKER", help="its name")
    drain.add_argument("--replace", action="store_true", help="start another one in its place")
    restart = _add(acts, "restart", "replace every worker, one after the other", _restart)
    for one in (scale, autoscale, drain, restart):
        one.add_argument(
            "--drain",
            metavar="{finish,migrate}",
            help="running requests finish where they are, or go on elsewhere [default: finish]",
        )
    for one in (scale, flip, drain, restart):
        one.add_argument("--no-wait", action="store_true", help="return when it is accepted")
    _add(acts, "watch", "show what happens, until Ctrl-C", _watch)
    explain = _add(acts, "explain", "show where a request went and why", _explain)
    explain.add_argument("request", metavar="ID", help="the id of its answer")


def _add(acts: Commands, name: str, text: str, act: Act) -> Parser:
    parser = acts.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument(
        "--target",
        metavar="HOST:PORT",
        help=f"the server's gRPC address [default: {DEFAULT_TARGET}]",
    )
    parser.add_argument("--token", metavar="TOKEN", help="better set as TWINFLOW_ADMIN_TOKEN")
    parser.add_argument(
        "--insecure", action="store_true", help="talk to another machine in clear text"
    )
    parser.runs(lambda invocation: run(invocation, act))
    return parser


def _one_of(names: dict[str, object]) -> str:
    return ", ".join(names)


def run(invocation: Invocation, act: Act) -> int:
    """Connect, act and print.

    Raises:
        ConfigError: an argument is wrong.
        TwinflowError: what the server says.
    """
    variables = environment.settings(invocation.environ)
    complaints = [*invocation.complaints, *environment.unknown_variables(invocation.environ)]
    target = invocation.text("target", variables.get("TWINFLOW_TARGET", DEFAULT_TARGET))
    if "/" in target or not target.rpartition(":")[2].isdecimal():
        complaints.append(f"--target {target!r}: must be HOST:PORT, the server's --grpc-port")
    token = invocation.text("token", environment.admin_token_to_send(invocation.environ))
    if not token:
        complaints.append("TWINFLOW_ADMIN_TOKEN: must be set, to what the server was started with")
    complaints += _complaints(invocation)
    if complaints:
        raise ConfigError(report(complaints))
    insecure = invocation.given.get("insecure") is True
    with Admin(target, token=token, insecure=insecure) as admin:
        act(admin, invocation)
    return 0


def _complaints(invocation: Invocation) -> list[str]:
    """What is wrong with the arguments of the single commands."""
    found = []
    for name, valid in (("pool", ROLES), ("role", ROLES), ("drain", DRAINS)):
        value = invocation.text(name, next(iter(valid)))
        if value not in valid:
            found.append(f"{name.upper()} {value!r}: must be one of {_one_of(valid)}")
    size = invocation.text("size", "0")
    if not size.isdecimal() or int(size) > _MAX_POOL:
        found.append(f"N {size!r}: must be a number from 0 to {_MAX_POOL}")
    for name in ("min", "max"):
        value = invocation.text(name, "1")
        if not value.isdecimal() or not 1 <= int(value) <= _MAX_POOL:
            found.append(f"--{name} {value!r}: must be a number from 1 to {_MAX_POOL}")
    for name in ("ttft_ms", "tpot_ms"):
        if (value := invocation.text(name, "")) and _milliseconds(value) is None:
            found.append(f"--{name.replace('_', '-')} {value!r}: must be a number above 0")
    return found


def _milliseconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.0 < value < float("inf") else None


def _show(admin: Admin, invocation: Invocation) -> None:
    invocation.stdout.write("\n".join(cluster_lines(admin.cluster())) + "\n")


def _scale(admin: Admin, invocation: Invocation) -> None:
    pool, size = _pool(invocation, "pool"), int(invocation.text("size", "0"))
    drain = _drain_mode(invocation)
    _follow(admin, invocation, lambda: admin.pools.scale(pool, size, drain=drain, wait=False))


def _autoscale(admin: Admin, invocation: Invocation) -> None:
    pool = _pool(invocation, "pool")
    if invocation.given.get("off") is True:
        admin.pools.autoscale_off(pool)
    else:
        if not invocation.text("max", ""):
            raise ConfigError("--max: must be given, unless it is --off")
        admin.pools.autoscale(
            pool,
            min=int(invocation.text("min", "1")),
            max=int(invocation.text("max", "1")),
            ttft_ms=_milliseconds(invocation.text("ttft_ms", "")),
            tpot_ms=_milliseconds(invocation.text("tpot_ms", "")),
            drain=_drain_mode(invocation),
        )
    _show(admin, invocation)


def _flip(admin: Admin, invocation: Invocation) -> None:
    worker, role = invocation.text("worker", ""), _pool(invocation, "role")
    _follow(admin, invocation, lambda: admin.workers.flip(worker, role=role, wait=False))


def _drain(admin: Admin, invocation: Invocation) -> None:
    worker, drain = invocation.text("worker", ""), _drain_mode(invocation)
    replace = invocation.given.get("replace") is True
    _follow(
        admin,
        invocation,
        lambda: admin.workers.drain(worker, drain=drain, replace=replace, wait=False),
    )


def _restart(admin: Admin, invocation: Invocation) -> None:
    drain = _drain_mode(invocation)
    _follow(admin, invocation, lambda: admin.restart(drain=drain, wait=False))


def _pool(invocation: Invocation, name: str) -> PoolName:
    """An argument that was found to name a pool."""
    return cast(PoolName, invocation.text(name, ""))


def _drain_mode(invocation: Invocation) -> DrainName:
    """An argument that was found to be a way to drain."""
    return cast(DrainName, invocation.text("drain", "finish"))


def _follow(admin: Admin, invocation: Invocation, change: Callable[[], Cluster]) -> None:
    """Make a change and show what comes of it.

    Raises:
        Unavailable: it cannot be carried out.
    """
    last = admin.cluster().last_event
    accepted = change()
    if invocation.given.get("no_wait") is True:
        invocation.stdout.write("Accepted.\n")
        return
    events = admin.watch(last)
    with closing(events):
        for event in events:
            _print_event(event, invocation.stdout)
            if event.kind == "settled" and event.version >= accepted.version:
                break
            if event.kind == "gave_up":
                raise Unavailable("The change was accepted, and cannot be carried out.")
    _show(admin, invocation)


def _watch(admin: Admin, invocation: Invocation) -> None:
    events = admin.watch()
    with closing(events):
        for event in events:
            _print_event(event, invocation.stdout)


def _print_event(event: Event, stdout: TextIO) -> None:
    stamp = time.strftime("%H:%M:%S", time.localtime(event.time))
    stdout.write(f"{stamp}  {event.message}\n")
    stdout.flush()


def _explain(admin: Admin, invocation: Invocation) -> None:
    explanation = admin.requests.explain(invocation.text("request", ""))
    invocation.stdout.write("\n".join(explanation_lines(explanation)) + "\n")


def cluster_lines(cluster: Cluster) -> list[str]:
    """Pools and workers as tables."""
    pools = [("pool", "wanted", "serving")]
    pools += [(pool.role, str(pool.size), str(pool.serving)) for pool in cluster.pools]
    heading = ("worker", "role", "state", "life", "ranks", "pid")
    loads = ("running", "waiting", "KV used", "leased")
    workers: list[Sequence[str]] = [(*heading, *loads)]
    workers += [_worker_row(worker) for worker in cluster.workers]
    problems = [f"{pool.role}: {pool.problem}" for pool in cluster.pools if pool.problem]
    scaling = [_autoscaling(pool) for pool in cluster.pools if pool.autoscaling is not None]
    details = [f"{one.worker_id}: {one.detail}" for one in cluster.workers if one.detail]
    settled = cluster.is_settled_for(cluster.version)
    return [
        *aligned(pools, 1),
        "",
        *aligned(workers, 3),
        "",
        *problems,
        *scaling,
        *details,
        "everything is as wanted" if settled else f"on the way: {cluster.unfinished()}",
    ]


def _autoscaling(pool: PoolInfo) -> str:
    info = pool.autoscaling or AutoscalingInfo(pool.size, pool.size)
    given = (("TTFT", info.ttft_ms), ("TPOT", info.tpot_ms))
    goals = [f"{name} {value:g} ms" for name, value in given if value is not None]
    bounds = f"{pool.role}: {info.min} to {info.max} workers for {' and '.join(goals)}"
    return f"{bounds}; {pool.verdict or 'nothing decided yet'}"


def _worker_row(worker: WorkerInfo) -> tuple[str, ...]:
    own = (worker.worker_id, worker.role, worker.phase, str(worker.epoch), str(worker.ranks))
    load = worker.load
    if load is None:
        return (*own, "-", "-", "-", "-", "-")
    used = 1 - load.free_blocks / load.total_blocks if load.total_blocks else 0.0
    return (
        *own,
        str(worker.pid),
        str(load.running),
        str(load.waiting + load.receiving),
        f"{used:.1%}",
        str(load.leased_blocks),
    )


def explanation_lines(explanation: Explanation) -> list[str]:
    """What became of a request, a paragraph for each sequence."""
    lines: list[str] = []
    for sequence in explanation.sequences:
        lines += [*_sequence_lines(sequence), ""]
    return lines[:-1]


def _sequence_lines(sequence: SequenceInfo) -> list[str]:
    first = "no token yet"
    if sequence.first_token_s is not None:
        first = f"first token after {sequence.first_token_s * 1000:.0f} ms"
    rows: list[Sequence[str]] = [
        ("prompt at", "decoded at", "why it ended", "from", "to", "tokens")
    ]
    for attempt in sequence.attempts:
        rows.append(
            (
                attempt.prefill_worker or attempt.decode_worker,
                attempt.decode_worker,
                attempt.outcome or "it has not",
                f"{attempt.began_s * 1000:.0f} ms",
                f"{attempt.ended_s * 1000:.0f} ms",
                str(attempt.tokens),
            )
        )
    phases = [f"  {phase.name:<12} {phase.seconds * 1000:8.1f} ms" for phase in sequence.phases]
    return [
        f"{sequence.sequence_id}: {sequence.state}, {sequence.prompt_tokens} prompt tokens, "
        f"{sequence.output_tokens} generated, {first}",
        *(f"  {line}" for line in aligned(rows, 3)),
        *phases,
    ]
