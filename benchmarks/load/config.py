"""Everything a benchmark session is told. Plain data: no parsing, no defaults from outside."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.prompts import Api
from benchmarks.load.runs import Arm
from benchmarks.load.slo import Objective
from benchmarks.load.workload import Workload
from twinflow.cluster.simulator.arrivals import Process


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """One session: every arm, at every rate, as often as asked.

    Attributes:
        arms: servers, the first being what the others are compared with.
        workload: what is sent.
        model: model name; None for the first that each server lists.
        api: endpoint.
        api_key_file: file with the bearer token; the token itself is kept out of reports.
        timeout_s: deadline of a request.
        rates: requests per second; None alone for the times of the trace.
        process: arrival process.
        cv: coefficient of variation of gamma arrivals.
        seed: of everything that is drawn.
        repeats: runs of each arm at each rate.
        warmup: requests sent one by one before each run, and not measured.
        token_range: ids of which prompts are made, [low, high).
        ignore_eos: make every output as long as planned.
        return_token_ids: count tokens by their ids.
        temperature: sampling temperature.
        objectives: what a good request keeps to.
        server_pids: roots of the server's process trees, to tell it from strangers.
        out: folder for the report; None for the table on standard output alone.
    """

    arms: tuple[Arm, ...]
    workload: Workload
    model: str | None = None
    api: Api = Api.COMPLETIONS
    api_key_file: Path | None = None
    timeout_s: float = 600.0
    rates: tuple[float | None, ...] = (None,)
    process: Process = Process.POISSON
    cv: float = 1.0
    seed: int = 0
    repeats: int = 1
    warmup: int = 2
    token_range: tuple[int, int] = (1000, 20000)
    ignore_eos: bool = True
    return_token_ids: bool = False
    temperature: float = 0.0
    objectives: tuple[Objective, ...] = ()
    server_pids: tuple[int, ...] = ()
    out: Path | None = None
