"""`twinflow admin` against a real door, with a real controller behind it."""

import asyncio
import re

import pytest
from tests.support.admin_doors import ADMIN_TOKEN, AdminDoor, admin_door
from tests.support.command_line import Ran, run_command

from twinflow.cluster.router.snapshot import Route, WorkerView
from twinflow.protos.errors import CheckpointError
from twinflow.runtime.outputs import FinishReason, TokenDelta

TOKEN = {"TWINFLOW_ADMIN_TOKEN": f"{ADMIN_TOKEN},older"}


async def admin(door: AdminDoor, *words: str) -> Ran:
    argv = ("admin", *words, "--target", door.target)
    return await asyncio.to_thread(run_command, *argv, environ=TOKEN)


async def test_pools_and_workers_are_shown() -> None:
    async with admin_door(prefill=1, decode=2) as door:
        ran = await admin(door, "workers")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "pool     wanted  serving",
        "prefill       1        1",
        "decode        2        2",
        "",
        "worker     role     state    life  ranks  pid  running  waiting  KV used  leased",
        "decode-0   decode   serving     2      1    -        -        -        -       -",
        "decode-1   decode   serving     3      1    -        -        -        -       -",
        "prefill-0  prefill  serving     1      1    -        -        -        -       -",
        "",
        "everything is as wanted",
    ]


async def test_a_change_is_shown_until_it_is_done() -> None:
    async with admin_door(prefill=1, decode=1) as door:
        ran = await admin(door, "scale", "decode", "2")
        lines = [line[10:] for line in ran.out.splitlines()]
        assert (ran.status, ran.err) == (0, "")
        assert lines[:4] == [
            "wanted: decode pool of 2 (drain: finish)",
            "decode-1 starts",
            "decode-1 serves as decode worker",
            "everything is as wanted",
        ]
        assert "decode-1   decode   serving" in ran.out
        ran = await admin(door, "drain", "decode-0", "--drain", "migrate")
        assert "decode-0 leaves, and its requests move" in ran.out
        ran = await admin(door, "drain", "decode-1", "--replace")
        assert "decode-1 has ended" in ran.out
        ran = await admin(door, "restart", "--no-wait")
        assert ran.out == "Accepted.\n"


async def test_a_pool_that_sizes_itself_says_by_what() -> None:
    async with admin_door(prefill=1, decode=1) as door:
        words = ("decode", "--min", "2", "--max", "4", "--tpot-ms", "40")
        ran = await admin(door, "autoscale", *words)
        assert (ran.status, ran.err) == (0, "")
        assert "decode: 2 to 4 workers for TPOT 40 ms" in ran.out
        ran = await admin(door, "scale", "decode", "1")
        assert ran.status == 1
        assert "The decode pool is scaled automatically: end that first." in ran.err
        ran = await admin(door, "autoscale", "decode", "--off")
        assert ran.status == 0
        assert "workers for" not in ran.out
        ran = await admin(door, "autoscale", "decode")
        assert "--max: must be given" in ran.err
        ran = await admin(door, "autoscale", "decode", "--max", "x", "--tpot-ms", "-1")
        assert "--max 'x'" in ran.err and "--tpot-ms '-1'" in ran.err


async def test_a_flip() -> None:
    async with admin_door(prefill=2, decode=1) as door:
        ran = await admin(door, "flip", "prefill-1", "decode")
        assert ran.status == 0
        assert "prefill-1 is a decode worker now" in ran.out


async def test_what_cannot_be_done() -> None:
    async with admin_door(prefill=1, decode=1) as door:
        ran = await admin(door, "flip", "prefill-0", "decode")
        assert ran.status == 1
        assert "a prefill worker is needed" in ran.err
        door.fleet.refusal = CheckpointError("config.json is gone")
        ran = await admin(door, "scale", "decode", "2")
        assert ran.status == 1
        assert "given up: config.json is gone" in ran.out


async def test_where_a_request_went() -> None:
    async with admin_door(prefill=1, decode=1) as door:
        decode, prefill = WorkerView(worker_id="decode-0"), WorkerView(worker_id="prefill-0")
        story = door.history.begin("4711-0", 10)
        door.history.attempt(story, Route(decode, prefill))
        door.history.deliver(story, TokenDelta((1,), finish_reason=FinishReason.LENGTH))
        ran = await admin(door, "explain", "cmpl-4711")
    first, heading, row = ran.out.splitlines()
    assert first.startswith("4711-0: finished, 10 prompt tokens, 1 generated, first token after ")
    assert re.split("  +", heading.strip()) == [
        *("prompt at", "decoded at", "why it ended", "from", "to", "tokens")
    ]
    assert row.split()[:3] == ["prefill-0", "decode-0", "finished"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("scale", "spare", "2"), "POOL 'spare': must be one of prefill, decode, mixed"),
        (("scale", "decode", "two"), "N 'two': must be a number"),
        (("flip", "decode-0", "x"), "ROLE 'x': must be one of"),
        (("drain", "decode-0", "--drain", "now"), "DRAIN 'now': must be one of finish, migrate"),
        (("workers", "--target", "nowhere"), "--target 'nowhere': must be HOST:PORT"),
        (("worker",), "unknown command; did you mean workers?"),
        (("workers", "--tokn", "x"), "--tokn: unknown flag"),
    ],
)
def test_mistakes_are_named(words: tuple[str, ...], problem: str) -> None:
    ran = run_command("admin", *words, environ=TOKEN)
    assert ran.status == 2
    assert problem in ran.err


def test_a_token_is_needed() -> None:
    ran = run_command("admin", "workers")
    assert ran.status == 2
    assert "TWINFLOW_ADMIN_TOKEN: must be set" in ran.err
