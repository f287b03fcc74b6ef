"""Templates in their own process: concurrency, limits, and nothing left behind."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

import psutil
import pytest
from tests.support.tokenizers import CHATML

from twinflow.protos.errors import CheckpointError, InvalidRequest, Overloaded, Unavailable
from twinflow.runtime.text.chat_template import ChatTemplate
from twinflow.runtime.text.template_renderer import RenderLimits, TemplateRenderer

HELLO = [{"role": "user", "content": "hello 🚀"}]
# Ordinary for "hello", hostile for everything else.
IF_HELLO = "{% if messages[0].content.startswith('hello') %}fine{% else %}HOSTILE{% endif %}"
SLOW = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@asynccontextmanager
async def rendering(
    source: str, *, limits: RenderLimits | None = None, max_model_len: int = 1000
) -> AsyncIterator[TemplateRenderer]:
    """A started renderer; afterwards no process of its is left."""
    renderer = TemplateRenderer(
        ChatTemplate(source, {"bos_token": "<s>"}),
        max_model_len,
        limits,
        lambda: datetime(2026, 3, 9),
    )
    before = children()
    await renderer.start()
    try:
        yield renderer
    finally:
        await renderer.close()
    assert renderer.pid is None
    assert children() == before


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


async def test_concurrent_conversations_get_their_own_text() -> None:
    async with rendering(CHATML) as renderer:
        texts = await asyncio.gather(*(renderer.render(user(f"n{i}")) for i in range(100)))
        assert texts == [
            f"<|im_start|>user\nn{i}<|im_end|>\n<|im_start|>assistant\n" for i in range(100)
        ]
        assert await renderer.render(HELLO, False) == "<|im_start|>user\nhello 🚀<|im_end|>\n"


async def test_special_tokens_and_the_clock_reach_the_process() -> None:
    async with rendering("{{ bos_token }}{{ strftime_now('%Y-%m-%d') }}") as renderer:
        assert await renderer.render(HELLO) == "<s>2026-03-09"


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (SLOW, "more than 1 s"),
        ("{{ 10 ** (10 ** (10 * messages | length)) }}", "more than 1 s"),
        ("{{ 'x' * 10 ** 9 }}", "too much memory|ended"),
        ("{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}", "output is too long"),
        ("{% set ns = namespace(s='x') %}{% for i in range(99) %}"
         "{% set ns.s = ns.s + ns.s %}{% endfor %}", "too much memory|more than|ended"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "does not fit|ended"),
        ("{{ ''.__class__ }}", "does not fit"),
        ("{% include '/etc/passwd' %}", "does not fit"),
        ("{{ raise_exception('no ' ~ messages[0].content) }}", "refused the messages: no evil"),
        ("{{ '\\ud800' }}", "does not fit"),
    ],
)  # fmt: skip
async def test_a_hostile_conversation_fails_alone(hostile: str, message: str) -> None:
    source = IF_HELLO.replace("HOSTILE", hostile)
    async with rendering(source) as renderer:
        good, bad, after = await asyncio.gather(
            renderer.render(HELLO),
            renderer.render(user("evil")),
            renderer.render(HELLO),
            return_exceptions=True,
        )
        assert (good, after) == ("fine", "fine")
        assert isinstance(bad, InvalidRequest) and bad.param == "messages"
        with pytest.raises(InvalidRequest, match=message):
            raise bad
        assert await renderer.render(HELLO) == "fine"


async def test_text_may_be_as_long_as_messages_and_context_allow() -> None:
    async with rendering("{{ messages[0].content }}{{ 'x' * 4000 }}") as renderer:
        assert len(await renderer.render(user("y" * 100_000))) == 104_000
    async with rendering("{{ messages[0].content * 2 }}") as renderer:
        with pytest.raises(InvalidRequest, match="too long"):
            await renderer.render(user("y" * 100_000))


async def test_a_process_that_dies_is_replaced() -> None:
    async with rendering(CHATML) as renderer:
        first = renderer.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        while psutil.pid_exists(first):
            await asyncio.sleep(0.01)
        assert "hello" in await renderer.render(HELLO)
        assert renderer.pid not in (None, first)


async def test_a_frozen_process_costs_one_request() -> None:
    async with rendering(CHATML) as renderer:
        assert renderer.pid is not None
        os.kill(renderer.pid, signal.SIGSTOP)
        with pytest.raises(InvalidRequest, match="more than 1 s"):
            await renderer.render(HELLO)
        assert "hello" in await renderer.render(HELLO)


async def test_a_full_queue_turns_requests_away() -> None:
    limits = RenderLimits(waiting=2)
    async with rendering(IF_HELLO.replace("HOSTILE", SLOW), limits=limits) as renderer:
        slow = asyncio.create_task(renderer.render(user("slow")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        results = await asyncio.gather(
            *(renderer.render(HELLO) for _ in range(4)), return_exceptions=True
        )
        assert results[:2] == ["fine", "fine"]
        assert [type(result) for result in results[2:]] == [Overloaded, Overloaded]
        with pytest.raises(InvalidRequest):
            await slow


async def test_waiting_has_a_deadline() -> None:
    limits = RenderLimits(time_s=5.0, wait_s=0.3)
    async with rendering(IF_HELLO.replace("HOSTILE", SLOW), limits=limits) as renderer:
        results = await asyncio.gather(
            renderer.render(user("slow")), renderer.render(HELLO), return_exceptions=True
        )
        assert [type(result) for result in results] == [Overloaded, Overloaded]


async def test_a_caller_that_goes_away_disturbs_nobody() -> None:
    async with rendering(CHATML) as renderer:
        process = renderer.pid
        leaving = [asyncio.create_task(renderer.render(user("x" * 50_000))) for _ in range(20)]
        staying = [asyncio.create_task(renderer.render(user(f"n{i}"))) for i in range(20)]
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        texts: Sequence[str] = await asyncio.gather(*staying)
        assert all(f"n{i}<" in text for i, text in enumerate(texts))
        assert renderer.pid == process


async def test_closing_fails_what_waits() -> None:
    async with rendering(IF_HELLO.replace("HOSTILE", SLOW)) as renderer:
        waiting = [asyncio.create_task(renderer.render(user("slow"))) for _ in range(3)]
        await asyncio.sleep(0.05)
        await renderer.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [Unavailable] * 3
        with pytest.raises(Unavailable):
            await renderer.render(HELLO)


async def test_a_renderer_that_was_not_started_says_so() -> None:
    with pytest.raises(Unavailable):
        await TemplateRenderer(ChatTemplate(CHATML), 100).render(HELLO)


async def test_surrogates_in_messages_are_the_callers_mistake() -> None:
    async with rendering(CHATML) as renderer:
        with pytest.raises(InvalidRequest, match="Unicode"):
            await renderer.render(user("\ud800"))


async def test_a_template_that_does_not_compile_fails_the_start() -> None:
    renderer = TemplateRenderer(ChatTemplate("{{ 1 | nonsense }}"), 100)
    with pytest.raises(CheckpointError, match="No filter named 'nonsense'"):
        await renderer.start()
    assert renderer.pid is None


async def test_a_template_that_takes_for_ever_to_compile_fails_the_start() -> None:
    """Jinja computes constants when it compiles."""
    bomb = ChatTemplate("{{ 10 ** (10 ** 10) }}")
    renderer = TemplateRenderer(bomb, 100, RenderLimits(start_s=1.0))
    before = children()
    with pytest.raises(CheckpointError, match="not compiled within 1 s and 512 MiB"):
        await renderer.start()
    assert renderer.pid is None
    assert children() == before


async def test_the_process_sees_no_environment_and_no_files() -> None:
    async with rendering(CHATML) as renderer:
        assert renderer.pid is not None
        process = psutil.Process(renderer.pid)
        assert set(process.environ()) <= {"PYTHONPATH", "LC_CTYPE"}
        assert process.rlimit(psutil.RLIMIT_NOFILE) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_AS) == (512 << 20, 512 << 20)
        assert process.open_files() == []
