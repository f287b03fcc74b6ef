"""The generator measures a stub of known latency, in a process of its own.

What is compared with what, and how much may differ: benchmarks.load.checks.
"""

import asyncio
import io
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from benchmarks.load.checks import Case, Check, Truths, checks_of
from benchmarks.load.client import get_json
from benchmarks.load.config import BenchConfig
from benchmarks.load.http1 import ConnectionPool, Endpoint
from benchmarks.load.lengths import Lengths
from benchmarks.load.prompts import Api
from benchmarks.load.runs import Arm, MonotonicClock
from benchmarks.load.session import Session
from benchmarks.load.stub_server import TOKENS
from benchmarks.load.workload import Workload
from twinflow.protos.errors import Unavailable

STUB_DEADLINE_S = 20.0

_ROOT = Path(__file__).resolve().parents[2]
_WARMUP = 2

CASES = (
    Case("completions", "steady", Api.COMPLETIONS),
    Case("chat, role with token", "steady", Api.CHAT),
    Case("chat, role before token", "role-first", Api.CHAT),
    Case("2 s freeze", "steady", Api.COMPLETIONS, rate=20.0, requests=200, freeze_after=60),
)


async def measure(case: Case) -> list[Check]:
    """Run one case against a stub process of its own."""
    freeze = case.freeze_after + _WARMUP if case.freeze_after else 0
    async with _stub_process(freeze) as url:
        config = BenchConfig(
            arms=(Arm(case.name.replace(" ", "-"), url),),
            workload=Workload(
                case.requests, Lengths.parse("fixed:32"), Lengths.parse(f"fixed:{TOKENS}")
            ),
            model=case.model,
            api=case.api,
            rates=(case.rate,),
            warmup=_WARMUP,
        )
        [result] = [each async for each in Session(config, io.StringIO()).results()]
        pool = ConnectionPool(Endpoint.parse(url), MonotonicClock().now)
        try:
            truths = msgspec.convert(await get_json(pool, "/truth"), Truths)
        finally:
            pool.close()
    return checks_of(case, result, truths)


@asynccontextmanager
async def _stub_process(freeze_after: int) -> AsyncIterator[str]:
    """A stub in a process of its own; yields its URL. It ends with the pipe to its input."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks.load.stub_server", "--freeze-after", str(freeze_after)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=_ROOT,
    )
    stdin, stdout = process.stdin, process.stdout
    try:
        if stdin is None or stdout is None:
            raise Unavailable("the stub server has no pipes")
        line = await asyncio.wait_for(stdout.readline(), STUB_DEADLINE_S)
        if not line.strip().isdigit():
            raise Unavailable("the stub server did not start: see its error output above")
        yield f"http://127.0.0.1:{int(line)}"
    except TimeoutError as error:
        raise Unavailable(f"the stub server did not start in {STUB_DEADLINE_S:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def calibrate(cases: Sequence[Case] = CASES) -> list[Check]:
    """Run every case, one after the other."""
    checks = []
    for case in cases:
        sys.stderr.write(f"calibrating: {case.name}, {case.requests} requests\n")
        checks += await measure(case)
    return checks
