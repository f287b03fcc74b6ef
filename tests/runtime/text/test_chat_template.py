"""Loading chat templates, and what a template may and may not do (row C11)."""

import json
from datetime import datetime
from pathlib import Path

import pytest
from tests.support.tokenizers import CHATML, byte_level_tokenizer, write_tokenizer

from twinflow.protos.errors import CheckpointError, InvalidRequest
from twinflow.runtime.text.chat_template import (
    MAX_TEMPLATE_BYTES,
    ChatTemplate,
    UnlimitedRenderer,
)

MESSAGES = [{"role": "user", "content": "Hi\u202e {{ 7 * 7 }}"}]


def at_noon() -> datetime:
    return datetime(2026, 3, 9, 12)


def render(source: str, **special_tokens: str) -> str:
    return UnlimitedRenderer(ChatTemplate(source, special_tokens), at_noon).render(MESSAGES)


def write_config(directory: Path, **config: object) -> Path:
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


class TestLoading:
    def test_a_directory_without_a_template_has_none(self, tmp_path: Path) -> None:
        assert ChatTemplate.load(tmp_path) is None
        assert ChatTemplate.load(write_tokenizer(tmp_path, byte_level_tokenizer())) is None

    def test_template_and_special_tokens_come_from_the_config(self, tmp_path: Path) -> None:
        write_config(tmp_path, chat_template=CHATML, bos_token="<s>", eos_token={"content": "</s>"})
        assert ChatTemplate.load(tmp_path) == ChatTemplate(
            CHATML, {"bos_token": "<s>", "eos_token": "</s>"}
        )

    def test_the_default_one_of_named_templates_is_taken(self, tmp_path: Path) -> None:
        named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
        loaded = ChatTemplate.load(write_config(tmp_path, chat_template=named))
        assert loaded == ChatTemplate("d")

    def test_a_file_of_its_own_comes_first(self, tmp_path: Path) -> None:
        write_config(tmp_path, chat_template="config", bos_token="<s>")
        (tmp_path / "chat_template.jinja").write_text("file ü", encoding="utf-8")
        assert ChatTemplate.load(tmp_path) == ChatTemplate("file ü", {"bos_token": "<s>"})

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            (7, "chat_template: found 7, expected"),
            ([{"name": "tool_use", "template": "x"}], 'one called "default"'),
            ([{"name": "default"}], "name and template"),
            ("ok\n{% for %}", "chat_template: line 2: "),
            ("{{ " + "(" * 50_000, "chat_template: "),
            ("x" * (MAX_TEMPLATE_BYTES + 1), "expected at most"),
            ("\ud800", "surrogates"),
        ],
    )
    def test_unusable_templates_are_refused(
        self, tmp_path: Path, template: object, message: str
    ) -> None:
        write_config(tmp_path, chat_template=template)
        with pytest.raises(CheckpointError, match=message):
            ChatTemplate.load(tmp_path)

    @pytest.mark.parametrize("content", [b"\xff", b"{% if %}", b"x" * (MAX_TEMPLATE_BYTES + 1)])
    def test_unusable_files_are_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "chat_template.jinja").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"chat_template\.jinja: "):
            ChatTemplate.load(tmp_path)

    def test_a_link_out_of_the_directory_is_not_followed(self, tmp_path: Path) -> None:
        model = tmp_path / "model"
        model.mkdir()
        (tmp_path / "secret").write_text("x")
        (model / "chat_template.jinja").symlink_to(tmp_path / "secret")
        with pytest.raises(CheckpointError, match="outside"):
            ChatTemplate.load(model)


class TestRendering:
    def test_messages_are_data(self) -> None:
        assert render(CHATML) == (
            "<|im_start|>user\nHi\u202e {{ 7 * 7 }}<|im_end|>\n<|im_start|>assistant\n"
        )

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ("{{ bos_token }}{{ eos_token }}", "<s>"),
            ("{{ strftime_now('%d %b %Y') }}", "09 Mar 2026"),
            ("{{ {'ä': '<&>', 'n': none} | tojson }}", '{"ä": "<&>", "n": null}'),
            ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
            (
                "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "012",
            ),
            ("{% generation %}a{% set x = 1 %}{% endgeneration %}{{ x is defined }}", "aFalse"),
            ("a\n    {% if true %}\nb\n    {% endif %}\nc", "a\nb\nc"),
            ("{{ tools is none }}{{ add_generation_prompt }}", "TrueTrue"),
        ],
    )
    def test_what_templates_rely_on(self, source: str, expected: str) -> None:
        assert render(source, bos_token="<s>") == expected

    def test_a_refusal_reaches_the_caller(self) -> None:
        with pytest.raises(
            InvalidRequest, match="refused the messages: roles must\nalternate".replace("\n", " ")
        ) as caught:
            render("{{ raise_exception('roles must\nalternate') }}")
        assert caught.value.param == "messages"

    @pytest.mark.parametrize(
        "source",
        [
            "{{ ''.__class__ }}",
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ ''['__class__'] }}",
            "{{ ''|attr('__class__') }}",
            "{{ '{0.__class__}'.format('') }}",
            "{{ cycler.__init__.__globals__ }}",
            "{{ raise_exception.__globals__ }}",
            "{{ strftime_now.__closure__ }}",
            "{{ messages.append(1) }}",
            "{{ messages[0].update({'role': 'system'}) }}",
            "{% include '/etc/passwd' %}",
            "{% import 'os' as os %}",
            "{{ open('/etc/passwd').read() }}",
            "{{ messages[99].content }}",
            "{{ 1 / 0 }}",
        ],
    )
    def test_the_sandbox_holds_and_says_nothing(self, source: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            render(source)
        assert (
            str(caught.value) == "The model's chat template failed: it does not fit the messages."
        )

    def test_a_template_that_cannot_be_compiled_is_the_checkpoints_fault(self) -> None:
        with pytest.raises(CheckpointError, match="No filter named 'nonsense'"):
            UnlimitedRenderer(ChatTemplate("{{ 1 | nonsense }}"))
