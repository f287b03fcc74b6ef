"""The generator measures a stub of known latency, in a process of its own.

What is compared with what, and how much may differ: benchmarks.load.checks.
"""

import asyncio
import io
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.load.checks import Case, Check, Truths, checks_of
from benchmarks.load.client import get_json
from benchmarks.load.config import BenchConfig
from benchmarks.load.http1 import ConnectionPool, Endpoint
from benchmarks.load.machine import CpuShares
from benchmarks.load.prompts import Api
from benchmarks.load.runs import Arm, MonotonicClock
from benchmarks.load.session import Session
from benchmarks.load.stub_server import TOKENS
from benchmarks.load.workload import Workload
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.protos.errors import Unavailable

STUB_DEADLINE_S = 20.0
ATTEMPTS = 3

_ROOT = Path(__file__).resolve().parents[2]
_WARMUP = 2

CASES = (
    Case("completions", "steady", Api.COMPLETIONS),
    Case("chat, role with token", "steady", Api.CHAT),
    Case("chat, role before token", "role-first", Api.CHAT),
    Case("2 s freeze", "steady", Api.COMPLETIONS, rate=20.0, requests=200, freeze_after=60),
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One measurement of one case.

    Attributes:
        checks: its outcome.
        cpu: who used the machine; None if unknown.
    """

    checks: list[Check]
    cpu: CpuShares | None

    @property
    def final(self) -> bool:
        """Whether it stands: it passed, or nobody disturbed it."""
        return all(check.passed for check in self.checks) or not (self.cpu and self.cpu.noisy)


async def measure(case: Case) -> Attempt:
    """Run one case against a stub process of its own."""
    freeze = case.freeze_after + _WARMUP if case.freeze_after else 0
    async with _stub_process(freeze) as (url, pid):
        config = BenchConfig(
            arms=(Arm(case.name.replace(" ", "-"), url),),
            workload=Workload(
                case.requests, Lengths.parse("fixed:32"), Lengths.parse(f"fixed:{TOKENS}")
            ),
            model=case.model,
            api=case.api,
            rates=(case.rate,),
            warmup=_WARMUP,
            server_pids=(pid,),
        )
        [result] = [each async for each in Session(config, io.StringIO()).results()]
        pool = ConnectionPool(Endpoint.parse(url), MonotonicClock().now)
        try:
            truths = msgspec.convert(await get_json(pool, "/truth"), Truths)
        finally:
            pool.close()
    return Attempt(checks_of(case, result, truths), result.cpu)


@asynccontextmanager
async def _stub_process(freeze_after: int) -> AsyncIterator[tuple[str, int]]:
    """A stub in a process of its own; yields its URL and process id."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks.load.stub_server", "--freeze-after", str(freeze_after)),
        stdin=asyncio.subprocess.PIPE,  # its end tells the stub that this process is gone
        stdout=asyncio.subprocess.PIPE,
        cwd=_ROOT,
    )
    try:
        yield f"http://127.0.0.1:{await _port(process)}", process.pid
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _port(process: asyncio.subprocess.Process) -> int:
    """Wait for the stub to tell its port."""
    try:
        if process.stdout is None:
            raise Unavailable("the stub server has no output")
        line = await asyncio.wait_for(process.stdout.readline(), STUB_DEADLINE_S)
    except TimeoutError as error:
        raise Unavailable(f"the stub server did not start in {STUB_DEADLINE_S:g} s") from error
    if not line.strip().isdigit():
        raise Unavailable("the stub server did not start: see its error output above")
    return int(line)


async def calibrate(
    cases: Sequence[Case],
    note: Callable[[str], None],
    measure_case: Callable[[Case], Awaitable[Attempt]] = measure,
) -> tuple[list[Check], int]:
    """Measure every case; one that fails on a noisy machine is measured again, three times at most.

    Args:
        cases: what to measure.
        note: told how each attempt went.
        measure_case: makes one attempt.

    Returns:
        The checks of the attempts that count, and how many attempts do not.
    """
    checks: list[Check] = []
    discarded = 0
    for case in cases:
        for number in range(1, ATTEMPTS + 1):
            attempt = await measure_case(case)
            failed = [check.what for check in attempt.checks if not check.passed]
            verdict = f"failed {', '.join(failed)}" if failed else "passed"
            note(f"{case.name}, attempt {number}: {verdict}; CPU of all cores: {attempt.cpu}")
            if attempt.final or number == ATTEMPTS:
                break
            discarded += 1
        checks += attempt.checks
    return checks, discarded
