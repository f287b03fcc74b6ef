"""Text for `FakeBackend`: a token is a byte of UTF-8, a template is one line per message."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.fake_backend import EOS

from twinflow.cluster.gateway.text_protocols import Renderer, SequenceText
from twinflow.protos.errors import InvalidRequest
from twinflow.runtime.outputs import FinishReason, TokenDelta, TokenLogprobs
from twinflow.runtime.sampling_params import SamplingParams

TEMPLATE_ERROR = "the template refuses this"


class ByteTokenizer:
    """Implements `Tokenizer`; tokens from 256 on have no text."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token for token in token_ids if token < 256).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes((token_id,)) if token_id < 256 else b""

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode(errors="backslashreplace")


class LineRenderer:
    """Implements `Renderer`: `role: content` lines, with the name behind the role."""

    async def render(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        if any(message["content"] == TEMPLATE_ERROR for message in messages):
            raise InvalidRequest("The chat template refuses the messages.", "messages")
        lines = [_line(**message) for message in messages]
        return "".join(lines) + ("assistant:" if add_generation_prompt else "")


def _line(role: str, content: str, name: str | None = None) -> str:
    return f"{role}: {content}\n" if name is None else f"{role} {name}: {content}\n"


@dataclass(frozen=True)
class FakeTextDelta:
    """Implements `TextDelta`."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason | None
    stop_reason: str | int | None


class ByteText:
    """Implements `SequenceText`: holds back what could begin a stop string."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, delta: TokenDelta) -> FakeTextDelta:
        ending = delta.stop_token_id is not None
        tokens = delta.token_ids[:-1] if ending else delta.token_ids
        self._held += self._decoder.decode(bytes(t for t in tokens if t < 256))
        for stop in self._params.stop:
            cut = self._held.find(stop)
            if cut >= 0:
                end = cut + (len(stop) if self._params.include_stop_str_in_output else 0)
                return self._delta(delta, self._held[:end], FinishReason.STOP, stop)
        if delta.finish_reason is None:
            keep = max((len(stop) - 1 for stop in self._params.stop), default=0)
            cut = max(0, len(self._held) - keep)
            text, self._held = self._held[:cut], self._held[cut:]
            return self._delta(delta, text, None, None)
        self._held += self._decoder.decode(b"", final=True)
        stop_token = delta.stop_token_id if delta.stop_token_id != EOS else None
        return self._delta(delta, self._held, delta.finish_reason, stop_token)

    def _delta(
        self, delta: TokenDelta, text: str, reason: FinishReason | None, stop: str | int | None
    ) -> FakeTextDelta:
        return FakeTextDelta(text, delta.token_ids, delta.logprobs, reason, stop)


class ByteCodec:
    """Implements `TextCodec`."""

    def __init__(self) -> None:
        self.tokenizer = ByteTokenizer()
        self.renderer: Renderer | None = LineRenderer()

    def sequence_text(
        self, params: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> SequenceText:
        return ByteText(params)
