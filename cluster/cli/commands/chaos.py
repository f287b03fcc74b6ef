"""`twinflow chaos MODEL`: serves a model, breaks it at named moments, and judges what came of it.

What can be broken, when, and what must not happen is twinflow.cluster.chaos.
"""

import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TextIO, TypeVar

import msgspec

from twinflow.cluster.chaos import report
from twinflow.cluster.chaos.checker import Bounds
from twinflow.cluster.chaos.faults import Action, Fault, Target
from twinflow.cluster.chaos.load import LoadShape, draw_prompts
from twinflow.cluster.chaos.network import OwnNetwork, is_own
from twinflow.cluster.chaos.plan import Scope, plan_faults
from twinflow.cluster.chaos.runner import Runner, RunSettings
from twinflow.cluster.chaos.soak import Soak, SoakPlan, soak_json, soak_lines
from twinflow.cluster.chaos.verdict import Verdict, key_of
from twinflow.cluster.cli.files import write_text
from twinflow.cluster.cli.flags import add_flags, flag_name, number_above_0, whole_number
from twinflow.cluster.cli.parser import Commands, Invocation
from twinflow.cluster.cli.sources import resolve
from twinflow.cluster.config import ServeConfig
from twinflow.protos.errors import ConfigError
from twinflow.workers.fault_points import Point

DESCRIPTION = """\
Serve MODEL, break the deployment again and again under load, and judge what came of it: every
request has one outcome, its tokens are those without the fault, nothing stays behind, and health
tells the truth. Needs Linux; for tests, never for a deployment that anybody uses.
"""

EPILOG = """\
targets:  prefill, decode (workers), rank, gateway, controller, link (KV), session (to a worker)
actions:  kill, terminate, freeze, blip, slow, corrupt, cut, delay, stall, partition, one-way
moments:  start-up, queued, prefill, hand-off, decode, draining

  What does not go together is left out. Ranks need --tensor-parallel-size 2 or more. Sessions are
  cut by routing rules, in a network that nobody else uses:
    unshare --user --map-root-user --net twinflow chaos MODEL --targets session

exit status:
  0 if nothing was violated and at least 99.5 % of requests succeeded, else 1.

examples:
  twinflow chaos ./smollm2-135m --seeds 20
  twinflow chaos ./smollm2-135m --seeds 0-4 --report matrix --resume
  twinflow chaos ./smollm2-135m --targets prefill decode --actions kill --moments hand-off
  twinflow chaos ./smollm2-135m --soak 30
  twinflow chaos ./smollm2-135m --first-seed 7 --seeds 1 --report chaos
"""

# Two workers a pool, so that somebody is left; float32, so that tokens do not depend on ties.
_DEFAULTS: dict[str, object] = {
    "launcher": "local",
    "prefill": "2",
    "decode": "2",
    "dtype": "float32",
    "port": "0",
    "grpc_port": "0",
    "log_level": "warning",
}
# What fills up while a soak warms up: caches, and what the gateway knows of them.
_SOAK_DEFAULTS: dict[str, object] = {"num_kv_blocks": "512"}
_OWN = (
    "seeds",
    "first_seed",
    "targets",
    "actions",
    "moments",
    "rate",
    "patience",
    "report",
    "resume",
    "soak",
)
# What says nothing about a deployment that others with the same settings would not say.
_UNTOLD = frozenset({"admin_token", "port", "grpc_port", "log_level", "launcher"})
_NUM_PROMPTS = 24
_LEAST_SUCCESS = 0.995
E = TypeVar("E", bound=Enum)


def add_to(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "chaos",
        usage="twinflow chaos MODEL [options] [options of serve]",
        help="break a deployment on purpose and judge what came of it",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    group = parser.add_argument_group("Faults")
    group.add_argument(
        "--seeds",
        metavar="N",
        help="do every fault so often, or with seeds like 5-9 [default: 1]",
    )
    group.add_argument("--first-seed", metavar="N", help="count seeds from here [default: 0]")
    group.add_argument("--targets", nargs="+", metavar="TARGET", help="who is hit [default: all]")
    group.add_argument("--actions", nargs="+", metavar="ACTION", help="what is done")
    group.add_argument("--moments", nargs="+", metavar="MOMENT", help="when")
    group.add_argument("--rate", metavar="N", help="requests per second [default: 4]")
    group.add_argument(
        "--patience",
        metavar="FACTOR",
        help="on times within which faults are noticed and mended [default: 1]",
    )
    group.add_argument(
        "--soak",
        metavar="MINUTES",
        help="instead: load it for so long, with clients that leave, nonsense and a kill every "
        "5 minutes, and see what grows",
    )
    group.add_argument("--report", metavar="NAME", help="write NAME.json, NAME.md and NAME.log")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with NAME.json: what it has already is not done again, and stays in it",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file with settings")
    add_flags(parser)
    parser.runs(run)


def run(invocation: Invocation) -> int:
    """Do every fault and tell what came of it; the exit status says whether all was well.

    Raises:
        ConfigError: the settings are wrong; nothing has started.
        ServerError: the deployment does not start.
    """
    served = {name: value for name, value in invocation.given.items() if name not in _OWN}
    defaults = _DEFAULTS | (_SOAK_DEFAULTS if "soak" in invocation.given else {})
    given = defaults | served | {"admin_token": [secrets.token_hex(16)]}
    config = resolve(given, invocation.environ, invocation.complaints)
    if config.launcher != "local":
        raise ConfigError(
            "--launcher: what is broken is processes, as --launcher local starts them"
        )
    given["model"] = str(Path(config.model).resolve())
    arguments = _Arguments(invocation.given)
    if "soak" in invocation.given:
        return _soak(invocation.stdout, arguments, given)
    scope = Scope(
        targets=arguments.choices("targets", Target),
        actions=arguments.choices("actions", Action),
        points=arguments.choices("moments", Point),
        pool=min(config.prefill, config.decode),
    )
    network = OwnNetwork() if is_own() else None
    for target, reason in _impossible(config, network):
        if target in scope.targets:
            invocation.stdout.write(f"Left out: {target.value}, because {reason}.\n")
            scope = replace(scope, targets=[one for one in scope.targets if one is not target])
    planned = [(seed, fault) for seed in arguments.seeds() for fault in plan_faults(seed, scope)]
    if not planned:
        raise ConfigError("no target, action and moment that go together are left")
    runs = _Matrix(invocation.stdout, arguments, given).fill(network, planned)
    invocation.stdout.write("\n" + "\n".join(report.lines(runs)) + "\n")
    return _status(runs)


def _soak(stdout: TextIO, arguments: "_Arguments", given: Mapping[str, object]) -> int:
    """Load it for minutes; the exit status says whether all was well."""
    plan = SoakPlan(seconds=60.0 * arguments.number("soak", 30.0))
    name = arguments.text("report", "")
    with tempfile.TemporaryDirectory(prefix="twinflow-chaos-") as scratch:
        settings = _settings(arguments, given, Path(scratch), LoadShape(leaving=0.1, bad=0.05))
        with Runner(settings, None) as runner:
            runner.learn()

            def say(text: str) -> None:
                stdout.write(text + "\n")
                stdout.flush()

            soak = Soak(runner.deployed, settings, runner.expected, plan=plan, say=say)
            outcome = soak.run()
            left = runner.close()
    stdout.write("\n" + "\n".join(soak_lines(outcome)) + "\n")
    if name:
        write_text(Path(f"{name}.json"), soak_json(outcome))
    enough = outcome.num_as_meant >= _LEAST_SUCCESS * len(outcome.requests)
    return 0 if enough and not outcome.violations and not left else 1


def _settings(
    arguments: "_Arguments", given: Mapping[str, object], scratch: Path, shape: LoadShape
) -> RunSettings:
    name = arguments.text("report", "")
    return RunSettings(
        given=given,
        directory=scratch,
        log=Path(f"{name}.log") if name else scratch / "serve.log",
        prompts=draw_prompts(_NUM_PROMPTS),
        shape=replace(shape, rate=arguments.number("rate", shape.rate)),
        bounds=Bounds().times(arguments.number("patience", 1.0)),
    )


def _impossible(config: ServeConfig, network: OwnNetwork | None) -> Iterator[tuple[Target, str]]:
    """What cannot be hit, and why."""
    if config.ranks("decode") < 2:
        yield Target.RANK, "decode workers have one rank"
    if network is None:
        yield Target.SESSION, "this is not a network that nobody else uses"


class _Matrix:
    """Does faults one after the other; what is known so far is written after each.

    Args:
        stdout: hears of each.
        arguments: of the command.
        given: settings of `twinflow serve`.

    Raises:
        ConfigError: there is nothing to go on with, or it is about something else.
    """

    def __init__(
        self, stdout: TextIO, arguments: "_Arguments", given: Mapping[str, object]
    ) -> None:
        self._stdout = stdout
        self._arguments = arguments
        self._given = given
        self._name = arguments.text("report", "")
        self._settings = _told(arguments, given)
        self._runs = self._earlier() if "resume" in arguments.given else []

    def fill(
        self, network: OwnNetwork | None, planned: Sequence[tuple[int, Fault]]
    ) -> Sequence[Verdict]:
        """Do what is planned and has not been done; returns everything that has been."""
        done = {key_of(run.seed, run) for run in self._runs}
        left = [one for one in planned if key_of(*one) not in done]
        if len(left) < len(planned):
            self._say(f"{len(planned) - len(left)} of {len(planned)} faults were done before.")
        if left:
            with tempfile.TemporaryDirectory(prefix="twinflow-chaos-") as scratch:
                settings = _settings(self._arguments, self._given, Path(scratch), LoadShape())
                with Runner(settings, network) as runner:
                    self._work(runner, left)
                    if stray := runner.close():
                        self._say(f"Still there after the end: {', '.join(stray)}")
        return self._runs

    def _work(self, runner: Runner, left: Sequence[tuple[int, Fault]]) -> None:
        began = time.monotonic()
        for number, (seed, fault) in enumerate(left, 1):
            before = time.monotonic()
            outcome = runner.run(seed, fault)
            now = time.monotonic()
            run = Verdict.of(outcome, seconds=now - before, machine_load=os.getloadavg()[0])
            self._runs.append(run)
            left_s = (now - began) / number * (len(left) - number)
            self._say(report.progress_line(number, len(left), run, left_s))
            self._write()

    def _write(self) -> None:
        if self._name:
            told = report.Report.of(self._settings, self._runs)
            write_text(Path(f"{self._name}.json"), told.encode())
            write_text(Path(f"{self._name}.md"), report.markdown(told, "twinflow chaos"))

    def _earlier(self) -> list[Verdict]:
        path = Path(f"{self._name}.json")
        if not self._name:
            raise ConfigError("--resume: say with --report what to go on with")
        if not path.exists():
            return []
        try:
            found = msgspec.json.decode(path.read_bytes(), type=report.Report)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"--resume: {path} is not a report of this command") from error
        if found.settings != self._settings:
            other = sorted(dict(found.settings.items() ^ self._settings.items()))
            raise ConfigError(f"--resume: {path} was made with other settings ({', '.join(other)})")
        return list(found.runs)

    def _say(self, text: str) -> None:
        self._stdout.write(text + "\n")
        self._stdout.flush()


def _told(arguments: "_Arguments", given: Mapping[str, object]) -> dict[str, str]:
    """What was broken, and under what load, as a report has it."""
    told = {name: str(value) for name, value in given.items() if name not in _UNTOLD}
    shape = LoadShape()
    return told | {
        "model": Path(str(given["model"])).name,
        "rate": f"{arguments.number('rate', shape.rate):g}",
        "patience": f"{arguments.number('patience', 1.0):g}",
        "cores": str(os.cpu_count()),
    }


def _status(runs: Sequence[Verdict]) -> int:
    sent, succeeded = report.survived(runs)
    enough = succeeded >= _LEAST_SUCCESS * sent
    return 0 if enough and not any(run.violations for run in runs) else 1


@dataclass(frozen=True, slots=True)
class _Arguments:
    """Reads values, with errors that name the flag."""

    given: Mapping[str, object]

    def text(self, name: str, default: str) -> str:
        """A text."""
        return str(self.given.get(name, default))

    def whole(self, name: str, default: int) -> int:
        """A whole number, at least 0."""
        return whole_number(name, self.text(name, str(default)))

    def seeds(self) -> range:
        """How many from the first one on, or from one to another."""
        text = self.text("seeds", "1")
        first, dash, last = text.partition("-")
        if not dash:
            begin = self.whole("first_seed", 0)
            return range(begin, begin + whole_number("seeds", text))
        if "first_seed" in self.given:
            raise ConfigError("--first-seed: --seeds says already where to begin")
        if not (first.isdecimal() and last.isdecimal()) or int(first) > int(last):
            raise ConfigError(f"--seeds {text!r}: must be a number, or two such as 5-9")
        return range(int(first), int(last) + 1)

    def number(self, name: str, default: float) -> float:
        """A number above 0."""
        return number_above_0(name, self.text(name, str(default)))

    def choices(self, name: str, kinds: type[E]) -> list[E]:
        """Some of the members of an enumeration, by their values; all if none are named."""
        words = self.given.get(name)
        if not isinstance(words, list):
            return list(kinds)
        known = {kind.value: kind for kind in kinds}
        for word in words:
            if word not in known:
                raise ConfigError(f"{flag_name(name)} {word!r}: choose from {', '.join(known)}")
        return [known[word] for word in words]
