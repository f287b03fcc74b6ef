"""What a model directory says about chats: a Jinja template and the special tokens it uses.

Loading checks the syntax. It does not compile or run anything of the template; `TemplateRenderer`
does, in a process of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import jinja2

from twinflow.protos.errors import CheckpointError, InvalidRequest
from twinflow.runtime.checkpoint.directory import ModelDirectory
from twinflow.runtime.checkpoint.json_file import JsonObject, read_small_file, shorten
from twinflow.runtime.text.template_engine import Messages, TemplateEngine, TemplateRefusal, parse
from twinflow.runtime.text.tokenizer import is_unicode, read_tokenizer_config, token_text

TEMPLATE_FILE = "chat_template.jinja"
MAX_TEMPLATE_BYTES = 1 << 20
_KEY = "chat_template"
_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)
_MAX_REFUSAL = 200


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template and the variables that come with it.

    Attributes:
        source: Jinja source.
        special_tokens: variables such as `bos_token`.
    """

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path) -> "ChatTemplate | None":
        """The template of a model directory; None if it has none.

        `chat_template.jinja` comes first, then `chat_template` in `tokenizer_config.json`, which
        is a template or a list of named ones, of which `default` is taken.

        Raises:
            CheckpointError: a file is damaged, or the template is not valid Jinja.
        """
        folder = ModelDirectory.open(directory)
        config = read_tokenizer_config(folder)
        path = folder.find(TEMPLATE_FILE)
        if path is not None:
            origin, source = str(path), _read_file(path)
        elif config is not None and _KEY in config:
            origin, source = f"{config.file}: {_KEY}", _default_template(config)
        else:
            return None
        _check_syntax(origin, source)
        tokens = {name: token_text(config, name) for name in _SPECIAL_TOKENS}
        return cls(source, {name: text for name, text in tokens.items() if text is not None})


class UnlimitedRenderer:
    """Renders in this process, without any limit in time, memory or length.

    For a program's own use of a template it trusts. A template that loops for ever never returns;
    servers use `TemplateRenderer`.

    Args:
        template: from the model directory.
        clock: what `strftime_now` in a template shows.

    Raises:
        CheckpointError: the template cannot be compiled.
    """

    def __init__(
        self, template: ChatTemplate, clock: Callable[[], datetime] = datetime.now
    ) -> None:
        try:
            self._engine = TemplateEngine(template.source, template.special_tokens)
        except jinja2.TemplateError as error:
            raise CheckpointError(
                f"The chat template cannot be compiled: {shorten(str(error))}"
            ) from error
        self._clock = clock

    def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation.

        Args:
            messages: plain JSON values.
            add_generation_prompt: end with what starts the assistant's answer.

        Raises:
            InvalidRequest: the template refuses the messages or fails on them.
        """
        try:
            return self._engine.render(
                messages, add_generation_prompt=add_generation_prompt, now=self._clock()
            )
        except TemplateRefusal as error:
            raise refused(str(error)) from error
        except Exception as error:  # a template may raise anything
            raise failed("it does not fit the messages") from error


def refused(reason: str) -> InvalidRequest:
    """The error for messages that a template refuses in words of its own."""
    line = " ".join(reason.split())[:_MAX_REFUSAL]
    return InvalidRequest(f"The model's chat template refused the messages: {line}", "messages")


def failed(reason: str) -> InvalidRequest:
    """The error for messages that a template cannot render."""
    return InvalidRequest(f"The model's chat template failed: {reason}.", "messages")


def _read_file(path: Path) -> str:
    try:
        return read_small_file(path, MAX_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def _default_template(config: JsonObject) -> str:
    """The template in `tokenizer_config.json`."""
    value = config.get(_KEY)
    if isinstance(value, list):
        named = {entry.get("name"): entry for entry in value if isinstance(entry, dict)}
        if "default" not in named:
            raise config.error(_KEY, 'a template, or named templates with one called "default"')
        value = named["default"].get("template")
    if not isinstance(value, str):
        raise config.error(_KEY, "a template, or a list of objects with name and template")
    if len(value) > MAX_TEMPLATE_BYTES:
        raise CheckpointError(
            f"{config.file}: {_KEY}: has {len(value)} characters, "
            f"expected at most {MAX_TEMPLATE_BYTES}"
        )
    return value


def _check_syntax(origin: str, source: str) -> None:
    if not is_unicode(source):
        raise CheckpointError(f"{origin}: has unpaired surrogates, expected Unicode text")
    try:
        parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(
            f"{origin}: line {error.lineno}: {shorten(error.message or 'syntax error')}"
        ) from error
    except RecursionError as error:
        raise CheckpointError(f"{origin}: is nested too deeply") from error
