"""Makes the runs of a session: plan, warm up, run, measure the machine. Writes no report."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TextIO

from benchmarks.load.client import LoadClient, first_model
from benchmarks.load.config import BenchConfig
from benchmarks.load.http1 import ConnectionPool, Endpoint
from benchmarks.load.machine import CpuMeter, machine_facts
from benchmarks.load.progress import Progress
from benchmarks.load.prompts import PromptBuilder, PromptConfig
from benchmarks.load.records import Outcome, PreparedRequest
from benchmarks.load.report import Report
from benchmarks.load.runs import MonotonicClock, RunResult, RunSpec, list_runs, run_open_loop
from benchmarks.load.workload import make_plan
from twinflow.cluster.simulator.arrivals import Arrivals
from twinflow.cluster.simulator.traces import MOONCAKE_BLOCK_TOKENS
from twinflow.protos.errors import ConfigError, Unavailable

PROGRESS_PERIOD_S = 2.0
_WARMUP_SEED = 1_000_000


class Session:
    """The runs of one configuration.

    Args:
        config: what to run.
        progress: where progress lines go.
    """

    def __init__(self, config: BenchConfig, progress: TextIO) -> None:
        self._config = config
        self._progress = progress
        self._clock = MonotonicClock()
        self._api_key = _read_key(config)

    async def results(self) -> AsyncIterator[RunResult]:
        """Make every run, one after the other.

        Raises:
            ConfigError: the workload cannot be planned.
            Unavailable: a server does not list its models or fails the warm-up.
        """
        config = self._config
        for spec in list_runs(config.arms, config.rates, config.repeats, config.seed):
            yield await self._run(spec)

    async def _run(self, spec: RunSpec) -> RunResult:
        pool = ConnectionPool(Endpoint.parse(spec.arm.url, self._api_key), self._clock.now)
        try:
            model = self._config.model or await first_model(pool)
            client = LoadClient(pool, self._config.api, self._config.timeout_s, self._clock.now)
            plan = self._prepare(spec, model)
            await self._warm_up(spec, model, client)
            return await self._measure(spec, model, plan, client)
        finally:
            pool.close()

    def _prepare(self, spec: RunSpec, model: str) -> list[PreparedRequest]:
        config = self._config
        arrivals = None if spec.rate is None else Arrivals(spec.rate, config.process, config.cv)
        plan = make_plan(config.workload, arrivals, spec.seed)
        builder = self._builder(model, spec.content_seed)
        return [builder.prepare(each, f"{spec.label}-{each.index}") for each in plan]

    async def _warm_up(self, spec: RunSpec, model: str, client: LoadClient) -> None:
        """Send a few requests of the same shapes, whose prompts no measured request shares."""
        if not self._config.warmup:
            return
        few = replace(
            self._config.workload, requests=self._config.warmup, disconnect_share=0.0, bad_share=0.0
        )
        builder = self._builder(model, (*spec.content_seed, _WARMUP_SEED))
        for each in make_plan(few, Arrivals(1.0), (*spec.seed, _WARMUP_SEED)):
            prepared = builder.prepare(each, f"{spec.label}-warm-up-{each.index}")
            record = await client.send(prepared, self._clock.now())
            if record.outcome is not Outcome.OK:
                why = f"{record.failure or record.outcome}: {record.detail}"
                raise Unavailable(f"{spec.arm.name} ({spec.arm.url}) failed its warm-up: {why}")

    async def _measure(
        self, spec: RunSpec, model: str, plan: list[PreparedRequest], client: LoadClient
    ) -> RunResult:
        progress = Progress(spec.label, len(plan), self._progress, self._clock.now)
        meter = CpuMeter(self._config.server_pids)
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        ticker = asyncio.create_task(progress.show_every(PROGRESS_PERIOD_S))
        try:
            with _settled_heap():
                meter.start()
                origin_s, records = await run_open_loop(plan, client.send, self._clock, progress)
                cpu = meter.stop()
        finally:
            ticker.cancel()
            with suppress(asyncio.CancelledError):
                await ticker
        progress.close()
        return RunResult(spec, model, started_at, origin_s, len(plan), records, cpu)

    def _builder(self, model: str, seed: tuple[int, ...]) -> PromptBuilder:
        config = self._config
        blocks = max(1, round(MOONCAKE_BLOCK_TOKENS * config.workload.length_scale))
        return PromptBuilder(
            PromptConfig(
                model=model,
                api=config.api,
                seed=seed,
                token_range=config.token_range,
                prefix_tokens=config.workload.prefix_tokens,
                block_tokens=blocks,
                ignore_eos=config.ignore_eos,
                return_token_ids=config.return_token_ids,
                temperature=config.temperature,
            )
        )


def _read_key(config: BenchConfig) -> str:
    if config.api_key_file is None:
        return ""
    try:
        return config.api_key_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {config.api_key_file}: {error}") from error


@contextmanager
def _settled_heap() -> Iterator[None]:
    """Keep the plan out of garbage collections, which would stall reads for milliseconds."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def report_session(config: BenchConfig, command: str, progress: TextIO) -> Report:
    """Run a session; what was complete is written after each run, if it is to be written."""
    report = Report(config, command, machine_facts())
    async for result in Session(config, progress).results():
        report.add(result)
        if config.out is not None:
            report.write(config.out)
    return report
