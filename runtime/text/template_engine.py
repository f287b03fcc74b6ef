"""Rendering of chat templates with Jinja, the way model authors expect it.

The environment is the one transformers renders with: sandboxed and immutable, trimmed blocks, loop
controls, `raise_exception`, `strftime_now`, a `tojson` that leaves text alone, and `generation`
blocks, which mark training targets and are transparent here. It is stricter in one point: reaching
for an unsafe attribute is an error, not an empty string.

The sandbox keeps templates from reaching Python. It does not bound time or memory, neither when
rendering nor when compiling, which computes constant expressions such as `10 ** (10 ** 10)`. So a
server compiles and renders in `template_process` only.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Messages = Sequence[Mapping[str, object]]


class TemplateRefusal(jinja2.TemplateError):
    """The template called `raise_exception`; its message is meant for the caller."""


class OutputTooLong(Exception):
    """The text grew beyond its limit."""


class TemplateEngine:
    """One compiled template.

    Args:
        source: the template.
        special_tokens: variables such as `bos_token`.

    Raises:
        jinja2.TemplateError: the template cannot be compiled.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._template = _environment().from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool,
        now: datetime,
        max_chars: int | None = None,
    ) -> str:
        """Render a conversation.

        Args:
            messages: plain JSON values.
            add_generation_prompt: end with what starts the assistant's answer.
            now: what `strftime_now` formats.
            max_chars: give up beyond this many characters.

        Raises:
            TemplateRefusal: the template refuses the messages.
            OutputTooLong: see `max_chars`.
            Exception: whatever the template's expressions run into.
        """

        def strftime_now(format: str) -> str:
            return now.strftime(format)

        chunks: list[str] = []
        length = 0
        for chunk in self._template.generate(
            **self._special_tokens,
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            strftime_now=strftime_now,
        ):
            length += len(chunk)
            if max_chars is not None and length > max_chars:
                raise OutputTooLong
            chunks.append(chunk)
        return "".join(chunks)


def parse(source: str) -> None:
    """Check the syntax of a template, without compiling it.

    Raises:
        jinja2.TemplateSyntaxError: with the line and what is wrong.
        RecursionError: expressions are nested too deeply.
    """
    _environment().parse(source)


class _Environment(ImmutableSandboxedEnvironment):
    def unsafe_undefined(self, obj: object, attribute: str) -> NoReturn:
        raise SecurityError(f"attribute {attribute!r} of {type(obj).__name__} is not accessible")


class _GenerationBlock(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: its content, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it as an instance variable

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusal(str(message))
