"""Prompts to tokens: bounded, and beside the event loop if it takes long."""

import asyncio
import threading

import pytest
from tests.support.fake_text import ByteCodec, ByteTokenizer

from twinflow.cluster.gateway.intake import IntakeLimits
from twinflow.cluster.gateway.prompt_reader import PromptReader
from twinflow.cluster.gateway.validation import (
    ChatMessage,
    ChatPrompt,
    DetokenizeRequest,
    TextPrompt,
    TokenizeRequest,
    TokenPrompt,
)
from twinflow.protos.errors import InvalidRequest, Overloaded

PATIENCE_S = 20.0


class WatchedTokenizer(ByteTokenizer):
    """Notes where it works; holds long texts up until told to go on."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.go = threading.Event()
        self.go.set()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.threads.append(threading.current_thread().name)
        assert self.go.wait(PATIENCE_S)
        return super().encode(text, add_special_tokens=add_special_tokens)


class Desk:
    """A reader, its tokenizer and what it has refused."""

    def __init__(self, max_requests: int = 100, max_size: int = 1_000_000) -> None:
        self.tokenizer = WatchedTokenizer()
        codec = ByteCodec()
        codec.tokenizer = self.tokenizer
        self.refusals: list[Overloaded] = []
        limits = IntakeLimits(max_requests, max_size)
        self.reader = PromptReader(codec, self.refusals.append, limits)

    def assert_idle(self) -> None:
        assert (self.reader.intake.num_requests, self.reader.intake.size) == (0, 0)


async def test_every_kind_of_prompt() -> None:
    desk = Desk()
    messages = (ChatMessage("developer", "be brief"), ChatMessage("user", "hi", "Ann"))
    prompts = (TokenPrompt((1, 2)), TextPrompt("ab"), ChatPrompt(messages))
    tokens = await desk.reader.read(prompts)
    chat = b"system: be brief\nuser Ann: hi\nassistant:"
    assert tokens == [(1, 2), (97, 98), tuple(chat)]
    assert desk.tokenizer.threads == ["MainThread"] * 2
    desk.assert_idle()


async def test_many_short_prompts_are_as_much_as_a_long_one() -> None:
    desk = Desk()
    tokens = await desk.reader.read([TextPrompt("x" * 1000)] * 5)
    assert tokens == [tuple(b"x" * 1000)] * 5
    assert all(name.startswith("tokenizer") for name in desk.tokenizer.threads)
    assert await desk.reader.tokenize(TokenizeRequest(TextPrompt("y" * 5000))) == (121,) * 5000
    assert desk.tokenizer.threads[-1].startswith("tokenizer")
    assert await desk.reader.detokenize(DetokenizeRequest((97,) * 5000)) == "a" * 5000
    desk.assert_idle()


async def test_the_event_loop_goes_on_and_threads_are_few() -> None:
    desk = Desk()
    desk.tokenizer.go.clear()
    long = [asyncio.create_task(desk.reader.read([TextPrompt("x" * 5000)])) for _ in range(10)]
    await asyncio.sleep(0.05)
    assert desk.reader.intake.num_requests == 10
    assert len(desk.tokenizer.threads) == 2
    desk.tokenizer.go.set()
    assert await asyncio.gather(*long) == [[tuple(b"x" * 5000)]] * 10
    desk.assert_idle()


async def test_more_than_there_is_room_for_is_refused_at_once() -> None:
    desk = Desk(max_size=10_000)
    desk.tokenizer.go.clear()
    first = asyncio.create_task(desk.reader.read([TextPrompt("x" * 9000)]))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="10000 characters and tokens"):
        await desk.reader.read([TokenPrompt((1,) * 600), TextPrompt("y" * 500)])
    assert await desk.reader.read([TokenPrompt((1,) * 1000)]) == [(1,) * 1000]
    assert len(desk.refusals) == 1
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    desk.assert_idle()
    desk.tokenizer.go.set()


async def test_a_prompt_without_tokens() -> None:
    desk = Desk()
    with pytest.raises(InvalidRequest, match="no tokens"):
        await desk.reader.read([TextPrompt("a"), TextPrompt("")])
    desk.assert_idle()
