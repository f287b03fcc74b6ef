"""Templates render, and prompts encode, as transformers does it."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.support.tokenizers import CHATML, byte_level_tokenizer, write_tokenizer

from twinflow.runtime.text.chat_template import ChatTemplate, UnlimitedRenderer
from twinflow.runtime.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

SMOLLM2 = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%Y") %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

QWEN2 = """\
{%- if tools %}
    {{- '# Tools\n' }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
        {%- generation %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": " What is the capital of France?\n"}],
    [
        {"role": "system", "content": "Be brief — sei kurz. "},
        {"role": "user", "content": "<b>Hi</b> & 'bye' 🚀"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"},
        {"role": "user", "content": "{{ bos_token }}{% raw %}"},
    ],
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )


@pytest.mark.parametrize("template", [CHATML, SMOLLM2, LLAMA3, QWEN2])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_prompts_are_the_same(
    theirs: Any,
    tmp_path: Path,
    template: str,
    add_generation_prompt: bool,
    messages: list[dict[str, str]],
) -> None:
    write_tokenizer(
        tmp_path,
        byte_level_tokenizer(),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=template,
    )
    loaded = ChatTemplate.load(tmp_path)
    assert loaded is not None
    text = UnlimitedRenderer(loaded, datetime.now).render(messages, add_generation_prompt)
    options = {"chat_template": template, "add_generation_prompt": add_generation_prompt}
    assert text == theirs.apply_chat_template(messages, tokenize=False, **options)
    ids = Tokenizer.load(tmp_path).encode(text, add_special_tokens=False)
    assert ids == theirs.apply_chat_template(messages, return_dict=False, **options)
