"""Minutes of load with clients that leave, nonsense, and a kill every now and then."""

import itertools
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from twinflow.cluster.chaos import processes
from twinflow.cluster.chaos.checker import Case, Kind, Violation, check
from twinflow.cluster.chaos.deployed import Deployed
from twinflow.cluster.chaos.growth import Bars, Growth, Life, Sample, growth_of
from twinflow.cluster.chaos.history import History, RequestRecord
from twinflow.cluster.chaos.load import Load, asking
from twinflow.cluster.chaos.processes import Footprint
from twinflow.cluster.chaos.runner import RunSettings
from twinflow.cluster.chaos.stream import ask
from twinflow.cluster.cli.tables import aligned
from twinflow.cluster.dispatch.history import CAPACITY
from twinflow.protos.errors import ServerError

_SAMPLE_S = 15.0
_IDLE_S = 60.0
_POLL_S = 0.5
# Connections that nobody uses are closed by then; see `--kv-link-idle-timeout`.
_REST_S = 5.0
# Completions of one request; each is a sequence that the gateway remembers.
_FILL_WITH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakPlan:
    """How long, and what is done.

    Attributes:
        seconds: under load, warm-up included.
        kill_every_s: between two kills of a worker.
        bars: of what may grow.
    """

    seconds: float
    kill_every_s: float = 300.0
    bars: Bars = field(default_factory=Bars)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakOutcome:
    """What came of it.

    Attributes:
        requests: all of them.
        growth: of every process.
        violations: what must not have been.
        kills: workers that were killed.
    """

    requests: Sequence[RequestRecord]
    growth: Sequence[Growth]
    violations: Sequence[Violation]
    kills: int

    @property
    def num_as_meant(self) -> int:
        """Requests that ended as their clients wanted, or deserved."""
        return sum(request.as_meant for request in self.requests)


class Soak:
    """Loads a deployment for minutes and watches its processes.

    Args:
        deployed: what is loaded.
        settings: how.
        expected: tokens of each prompt.
        plan: how long.
        say: hears how far it is.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        deployed: Deployed,
        settings: RunSettings,
        expected: Mapping[int, Sequence[int]],
        *,
        plan: SoakPlan,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._deployed = deployed
        self._settings = settings
        self._expected = expected
        self._plan = plan
        self._say = say
        self._clock = clock
        self._loaded: dict[Life, list[Sample]] = {}
        self._kills = 0

    def run(self) -> SoakOutcome:
        """Fill, load twice, and rest after each load: what is held then is compared."""
        bars = self._plan.bars
        self._fill()
        requests = self._load(min(bars.warm_up_s, self._plan.seconds / 2), seed=1, kills=False)
        first = self._rest()
        left_s = self._plan.seconds - min(bars.warm_up_s, self._plan.seconds / 2)
        requests += self._load(left_s, seed=2, kills=True)
        last = self._rest()
        history = History(began=self._clock(), requests=requests)
        found = self._deployed.scrape()
        history.held = found.held() if found else {"metrics": 1}
        history.counters = found.counters if found else None
        violations = check(history, Case(None, self._expected, self._settings.bounds))
        growth = growth_of(self._loaded, first, last, bars)
        for one in growth:
            for fault in one.faults(bars):
                violations.append(Violation(Kind.GROWTH, f"{one.life[0]}: {fault}"))
        return SoakOutcome(
            requests=requests, growth=growth, violations=violations, kills=self._kills
        )

    def _fill(self) -> None:
        """Ask for as many sequences as the gateway remembers.

        It keeps the stories of the latest ones for operators. Until it has that many, every request
        adds one, which is a use of memory and no leak.

        Raises:
            ServerError: one was not answered.
        """
        self._say(f"{CAPACITY} short sequences, which is what the gateway remembers")
        for number in range(0, CAPACITY, _FILL_WITH):
            record = RequestRecord(f"fill-{number}", 0, self._clock())
            body = asking(self._settings.prompts[0], self._deployed.model, record.name)
            body |= {"prompt": "time", "max_tokens": 1, "n": _FILL_WITH}
            patience_s = self._settings.shape.patience_s
            ask(self._deployed.endpoint, body, record, patience_s=patience_s, clock=self._clock)
            if len(record.tokens) != _FILL_WITH:
                raise ServerError(f"{record.name} was not answered: {record.ends}")

    def _load(self, seconds: float, *, seed: int, kills: bool) -> list[RequestRecord]:
        load = Load(
            self._deployed.endpoint,
            self._deployed.model,
            self._settings.prompts,
            shape=self._settings.shape,
            seed=seed,
            clock=self._clock,
        )
        load.start()
        began = self._clock()
        kill_at = began + self._plan.kill_every_s / 2
        turns = itertools.cycle(("prefill-0", "decode-0"))
        while (now := self._clock()) < began + seconds:
            self._sample(now)
            if kills and now >= kill_at:
                kill_at += self._plan.kill_every_s
                self._kill(next(turns))
            time.sleep(min(_SAMPLE_S, max(began + seconds - now, 0.0)))
        return load.finish()

    def _kill(self, name: str) -> None:
        pid = self._deployed.pids().get(name)
        if pid is not None:
            self._say(f"kill {name}")
            self._kills += 1
            processes.send(pid, signal.SIGKILL)

    def _sample(self, now: float) -> None:
        for life, footprint in self._footprints().items():
            self._loaded.setdefault(life, []).append(Sample(now, footprint))
        total = sum(one[-1].footprint.rss_mib for one in self._loaded.values())
        self._say(f"{len(self._loaded)} lives so far, {total:.0f} MiB when last seen")

    def _footprints(self) -> dict[Life, Footprint]:
        lives = [("serve", self._deployed.pid), *self._deployed.pids().items()]
        found = {life: processes.footprint(life[1]) for life in lives}
        return {life: footprint for life, footprint in found.items() if footprint is not None}

    def _rest(self) -> dict[Life, Footprint]:
        """What every process holds when nothing runs."""
        end = self._clock() + _IDLE_S
        while self._clock() < end:
            found = self._deployed.scrape()
            if found is not None and not found.held():
                break
            time.sleep(_POLL_S)
        time.sleep(_REST_S)
        return self._footprints()


def soak_lines(outcome: SoakOutcome) -> list[str]:
    """The result, for people."""
    heading = ["process", "minutes", "RSS MiB", "MiB/min", "gain", "descriptors", "threads"]
    rows = [heading, *(_row(one) for one in outcome.growth)]
    total, meant = len(outcome.requests), outcome.num_as_meant
    return [
        *aligned(rows, 1),
        "",
        f"{meant} of {total} requests ended as they should ({meant / max(total, 1):.2%}), "
        f"{outcome.kills} workers were killed, {len(outcome.violations)} violations.",
        *(f"  {one.kind.value}: {one.detail}" for one in outcome.violations),
    ]


def soak_json(outcome: SoakOutcome) -> str:
    """The same for programs."""
    told = {
        "requests": len(outcome.requests),
        "as_meant": outcome.num_as_meant,
        "kills": outcome.kills,
        "processes": [
            {
                "name": one.life[0],
                "minutes": one.minutes,
                "rss_mib": one.rss_mib,
                "rss_mib_per_min": one.rss_slope,
                "rest_fds": one.rest_fds,
                "rest_threads": one.rest_threads,
            }
            for one in outcome.growth
        ],
        "violations": [{"kind": v.kind.value, "detail": v.detail} for v in outcome.violations],
    }
    return json.dumps(told, indent=1) + "\n"


def _row(one: Growth) -> list[str]:
    line = "-" if one.rss_slope is None else f"{one.rss_slope:+.2f}"
    gain = "-" if one.rss_gain is None else f"{one.rss_gain:+.1f}"
    fds, threads = (
        "-" if rest is None else f"{rest[0]} → {rest[1]}"
        for rest in (one.rest_fds, one.rest_threads)
    )
    name = f"{one.life[0]} ({one.life[1]})"
    return [name, f"{one.minutes:.1f}", f"{one.rss_mib:.0f}", line, gain, fds, threads]
