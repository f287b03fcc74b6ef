"""`twinflow chat` against a real gRPC door: a conversation, its failures and its end."""

import asyncio
import io
from collections.abc import Iterator, Sequence

import pytest
from tests.support.command_line import Ran, run_command
from tests.support.fake_backend import Behaviour, FakeBackend
from tests.support.grpc_doors import running_door

from twinflow.cluster.cli.commands.chat import converse
from twinflow.cluster.client.request import ChatMessage
from twinflow.protos.errors import EngineError


async def chat(
    backend: FakeBackend,
    typed: str,
    *flags: str,
    keys: tuple[str, ...] = (),
    at_terminal: bool = True,
) -> Ran:
    async with running_door(backend, keys=keys) as door:
        argv = ("chat", "--target", door.target, *flags)
        return await asyncio.to_thread(run_command, *argv, typed=typed, at_terminal=at_terminal)


def replying(text: str) -> FakeBackend:
    return FakeBackend(Behaviour(reply=lambda _: text.encode()))


async def test_a_conversation_is_carried_on() -> None:
    backend = replying("Paris.")
    ran = await chat(backend, "Capital of France?\n\nAnd its river?\n/exit\n")
    assert ran.status == 0
    assert ran.out.startswith("tiny at 127.0.0.1:")
    assert ran.out.count("Paris.") == 2
    first, second = (bytes(spec.prompt_token_ids).decode() for spec in backend.specs)
    assert "Paris." not in first
    assert second.index("Capital of France?") < second.index("Paris.") < second.index("its river?")


async def test_a_pipe_gets_the_answer_and_nothing_else() -> None:
    ran = await chat(replying("Paris."), "Capital of France?\n", at_terminal=False)
    assert (ran.status, ran.out) == (0, "Paris.\n")


async def test_new_forgets_what_was_said() -> None:
    backend = replying("Yes.")
    await chat(backend, "One\n/new\nTwo\n")
    assert "One" not in bytes(backend.specs[1].prompt_token_ids).decode()


async def test_a_key_is_sent() -> None:
    ran = await chat(replying("Hi."), "Hello\n", "--api-key", "sesame", keys=("sesame",))
    assert ran.status == 0 and "Hi." in ran.out


async def test_a_wrong_key_ends_it() -> None:
    ran = await chat(replying("Hi."), "Hello\n", "--api-key", "wrong", keys=("sesame",))
    assert ran.status == 1 and "wrong" not in ran.err and "Hi." not in ran.out


async def test_a_failed_answer_is_reported_and_forgotten() -> None:
    backend = FakeBackend(Behaviour(fail_after=1, error=EngineError("a step failed")))
    ran = await chat(backend, "One\nTwo\n")
    assert ran.status == 0
    assert ran.out.count("(") >= 2
    assert "One" not in bytes(backend.specs[1].prompt_token_ids).decode()


def test_a_stopped_answer_is_forgotten_and_the_conversation_goes_on() -> None:
    asked: list[list[str]] = []

    def reply(conversation: Sequence[ChatMessage]) -> Iterator[str]:
        asked.append([message["content"] for message in conversation])
        yield "Well"
        if len(asked) == 1:
            raise KeyboardInterrupt

    out = io.StringIO()
    converse(io.StringIO("One\nTwo\nThree"), out, reply)
    assert asked == [["One"], ["Two"], ["Two", "Well", "Three"]]
    assert "(stopped)" in out.getvalue()


def test_nobody_there() -> None:
    ran = run_command("chat", "--target", "127.0.0.1:1", typed="Hello\n")
    assert ran.status == 1
    assert "127.0.0.1:1 cannot be reached" in ran.err


@pytest.mark.parametrize("target", ["http://127.0.0.1:8000", "127.0.0.1", "box:http"])
def test_targets_that_are_none(target: str) -> None:
    ran = run_command("chat", "--target", target)
    assert ran.status == 2
    assert "must be HOST:PORT" in ran.err


async def test_the_temperature_is_low_unless_given() -> None:
    backend = replying("Yes.")
    await chat(backend, "One\n")
    await chat(backend, "One\n", "--temperature", "1.5")
    assert [spec.params.temperature for spec in backend.specs] == [0.2, 1.5]


@pytest.mark.parametrize("temperature", ["hot", "3", "nan", "-1"])
def test_temperatures_that_are_none(temperature: str) -> None:
    ran = run_command("chat", "--temperature", temperature)
    assert ran.status == 2
    assert f"--temperature '{temperature}': must be" in ran.err


def test_another_machine_is_not_talked_to_in_clear_text_unasked() -> None:
    ran = run_command("chat", "--target", "192.0.2.1:50051", typed="Hello\n")
    assert ran.status == 2
    assert "clear text" in ran.err
