"""`twinflow chat`: a conversation with a running server, in the terminal.

Talks gRPC through `twinflow.Client`; the conversation is kept here, the server keeps none of it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TextIO

from twinflow.cluster.cli import environment
from twinflow.cluster.cli.parser import Commands, Invocation
from twinflow.cluster.cli.sources import report
from twinflow.cluster.client import CallOptions, Client
from twinflow.cluster.client.request import ChatMessage
from twinflow.protos.errors import ConfigError, InvalidRequest, TwinflowError
from twinflow.runtime.sampling_params import SamplingParams

DEFAULT_TARGET = "127.0.0.1:50051"
# Low: at 1.0 small models wander off.
DEFAULT_TEMPERATURE = "0.2"
GREETING = "Enter a message; /new starts afresh, /exit or Ctrl-D ends. Ctrl-C stops an answer.\n"
PROMPT = "> "

EPILOG = """\
examples:
  twinflow chat
  twinflow chat --target gpu-box:50051 --insecure
  echo "What is the capital of France?" | twinflow chat
"""

# From a conversation, oldest message first, to the pieces of its next message.
Reply = Callable[[Sequence[ChatMessage]], Iterator[str]]


def add_to(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "chat",
        help="talk to a served model",
        description="Talk to a model that `twinflow serve` serves.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--target",
        metavar="HOST:PORT",
        help=f"the server's gRPC address [default: {DEFAULT_TARGET}]",
    )
    parser.add_argument("--model", metavar="NAME", help="by default the one that is served")
    parser.add_argument(
        "--temperature",
        metavar="T",
        help=f"0 gives the most likely answer, 2 the wildest [default: {DEFAULT_TEMPERATURE}]",
    )
    parser.add_argument("--api-key", metavar="KEY", help="better set as TWINFLOW_API_KEY")
    parser.add_argument(
        "--insecure", action="store_true", help="talk to another machine in clear text"
    )
    parser.runs(run)


def run(invocation: Invocation) -> int:
    """Converse until the input ends.

    Raises:
        ConfigError: an argument is wrong.
        TwinflowError: the server cannot be reached at all.
    """
    variables = environment.settings(invocation.environ)
    complaints = [*invocation.complaints, *environment.unknown_variables(invocation.environ)]
    target = invocation.text("target", variables.get("TWINFLOW_TARGET", DEFAULT_TARGET))
    if "/" in target or not target.rpartition(":")[2].isdecimal():
        complaints.append(f"--target {target!r}: must be HOST:PORT, the server's --grpc-port")
    temperature = _temperature(invocation, complaints)
    if complaints:
        raise ConfigError(report(complaints))
    key = invocation.text("api_key", environment.key_to_send(invocation.environ))
    insecure = invocation.given.get("insecure") is True
    with Client(target, api_key=key or None, insecure=insecure) as client:
        model = invocation.text("model", "") or client.model_info().model
        prompt = PROMPT if invocation.stdin.isatty() else ""
        if prompt:
            invocation.stdout.write(f"{model} at {target}\n{GREETING}")
        reply = partial(answer, client, model, temperature)
        converse(invocation.stdin, invocation.stdout, reply, prompt)
    return 0


def answer(
    client: Client, model: str, temperature: float, conversation: Sequence[ChatMessage]
) -> Iterator[str]:
    """Stream the next message of a conversation, up to the end of the model's context."""
    options = CallOptions(model=model)
    for chunk in client.stream(
        messages=conversation, options=options, temperature=temperature, max_tokens=None
    ):
        yield chunk.text


def converse(stdin: TextIO, stdout: TextIO, reply: Reply, prompt: str = PROMPT) -> None:
    """Read messages and write answers until the input ends.

    Without a prompt, as between other commands of a shell, nothing but answers is written.

    An answer that fails or is interrupted leaves the conversation as it was before its question.
    """
    history: list[ChatMessage] = []
    for line in _lines(stdin, stdout, prompt):
        if line == "/new":
            history.clear()
            continue
        question = ChatMessage(role="user", content=line)
        try:
            text = _relay(reply([*history, question]), stdout)
        except KeyboardInterrupt:
            stdout.write("\n(stopped)\n")
        except TwinflowError as error:
            stdout.write(f"\n({error})\n")
        else:
            history += [question, ChatMessage(role="assistant", content=text)]


def _temperature(invocation: Invocation, complaints: list[str]) -> float:
    text = invocation.text("temperature", DEFAULT_TEMPERATURE)
    try:
        return SamplingParams(temperature=float(text)).temperature
    except (ValueError, InvalidRequest):
        complaints.append(f"--temperature {text!r}: must be a number from 0 to 2")
        return 0.0


def _lines(stdin: TextIO, stdout: TextIO, prompt: str) -> Iterator[str]:
    """The messages that are entered, without blank ones."""
    while True:
        stdout.write(prompt)
        stdout.flush()
        line = stdin.readline()
        if not line or line.strip() == "/exit":
            stdout.write("\n" if prompt else "")
            return
        if line.strip():
            yield line.strip()


def _relay(pieces: Iterator[str], stdout: TextIO) -> str:
    text = ""
    for piece in pieces:
        stdout.write(piece)
        stdout.flush()
        text += piece
    stdout.write("\n")
    return text
