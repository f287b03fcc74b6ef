"""From prompts as callers write them to tokens, and back: templates and the tokenizer.

    conversation ─ chat template ─► text ─ tokenizer ─► tokens

Short texts are tokenised where they are; a request with more text goes to a few threads, whole.
What may be under way at the same time is bounded. Nothing here knows a context's length.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from twinflow.cluster.gateway.intake import Intake, IntakeLimits
from twinflow.cluster.gateway.text_protocols import TextCodec
from twinflow.cluster.gateway.validation import (
    ChatMessage,
    ChatPrompt,
    DetokenizeRequest,
    Prompt,
    TextPrompt,
    TokenizeRequest,
    TokenPrompt,
)
from twinflow.protos.errors import InvalidRequest, Overloaded

T = TypeVar("T")

# Seconds of work for the threads, and many of the largest bodies.
DEFAULT_LIMITS = IntakeLimits(max_requests=256, max_size=32 << 20)
# Shorter texts are tokenised faster than a thread is reached.
_INLINE_CHARACTERS = 4096
_THREADS = 2
# OpenAI's newer name for the role that templates know as `system`.
_TEMPLATE_ROLES = {"developer": "system"}


class PromptReader:
    """Renders and tokenises.

    Args:
        codec: the model's tokenizer and chat template.
        on_refused: hears of every request that there was no room for.
        limits: in characters of text and tokens of prompts given as such.
    """

    def __init__(
        self,
        codec: TextCodec,
        on_refused: Callable[[Overloaded], None],
        limits: IntakeLimits = DEFAULT_LIMITS,
    ) -> None:
        self._codec = codec
        self.intake = Intake(limits, "characters and tokens", on_refused)
        # Its threads end with it.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")

    async def read(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """The tokens of every prompt of a request.

        Raises:
            InvalidRequest: a conversation cannot be rendered, or a prompt has no tokens.
            Overloaded: too much is under way.
        """
        with self.intake.share(sum(_size(prompt) for prompt in prompts)):
            texts = [await self._text(prompt) for prompt in prompts]
            length = sum(len(text) for text in texts if text is not None)
            found = await self._work(length, partial(self._tokens, prompts, texts))
        if not all(found):
            raise InvalidRequest("The prompt has no tokens.", "prompt")
        return found

    async def tokenize(self, request: TokenizeRequest) -> tuple[int, ...]:
        """The tokens that a text or a conversation becomes.

        Raises:
            InvalidRequest: the conversation cannot be rendered.
            Overloaded: too much is under way.
        """
        with self.intake.share(_size(request.prompt)):
            match request.prompt:
                case ChatPrompt():
                    text = await self._render(request.prompt, request.add_generation_prompt)
                case TextPrompt(text):
                    pass
            special = request.add_special_tokens
            encode = partial(self._codec.tokenizer.encode, add_special_tokens=special)
            return tuple(await self._work(len(text), partial(encode, text)))

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """The text of tokens, special tokens included.

        Raises:
            Overloaded: too much is under way.
        """
        decode = partial(self._codec.tokenizer.decode, skip_special_tokens=False)
        with self.intake.share(len(request.token_ids)):
            work = partial(decode, request.token_ids)
            return await self._work(len(request.token_ids), work)

    async def _work(self, size: int, work: Callable[[], T]) -> T:
        if size <= _INLINE_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _tokens(
        self, prompts: Sequence[Prompt], texts: Sequence[str | None]
    ) -> list[tuple[int, ...]]:
        encode = self._codec.tokenizer.encode
        found: list[tuple[int, ...]] = []
        for prompt, text in zip(prompts, texts, strict=True):
            if isinstance(prompt, TokenPrompt):
                found.append(prompt.token_ids)
            elif text is not None:
                # A template has the special tokens that the tokenizer would add.
                special = isinstance(prompt, TextPrompt)
                found.append(tuple(encode(text, add_special_tokens=special)))
        return found

    async def _text(self, prompt: Prompt) -> str | None:
        match prompt:
            case TokenPrompt():
                return None
            case TextPrompt(text):
                return text
            case ChatPrompt():
                return await self._render(prompt, add_generation_prompt=True)

    async def _render(self, prompt: ChatPrompt, add_generation_prompt: bool) -> str:
        renderer = self._codec.renderer
        if renderer is None:
            raise InvalidRequest("The model has no chat template; use /v1/completions.", "messages")
        messages = [_for_template(message) for message in prompt.messages]
        return await renderer.render(messages, add_generation_prompt)


def _for_template(message: ChatMessage) -> dict[str, str]:
    """A message as templates expect it; most look at role and content only."""
    role = _TEMPLATE_ROLES.get(message.role, message.role)
    found = {"role": role, "content": message.content}
    return found if message.name is None else found | {"name": message.name}


def _size(prompt: Prompt) -> int:
    match prompt:
        case TokenPrompt(token_ids):
            return len(token_ids)
        case TextPrompt(text):
            return len(text)
        case ChatPrompt(messages):
            return sum(len(message.content) for message in messages)
