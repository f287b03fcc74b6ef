"""Fields that other servers understand and this one does not: refused by name, never ignored.

A value that asks for nothing (null, an empty list, the default) passes.
"""

from collections.abc import Mapping

from twinflow.protos.errors import InvalidRequest

_NULL: tuple[object, ...] = (None,)
_NULL_OR_EMPTY: tuple[object, ...] = (None, [], {}, "")
_NULL_OR_FALSE: tuple[object, ...] = (None, False)
_NULL_OR_TRUE: tuple[object, ...] = (None, True)

# Field → values that ask for nothing.
_COMMON: dict[str, tuple[object, ...]] = {
    "allowed_token_ids": _NULL,
    "bad_words": _NULL_OR_EMPTY,
    "detokenize": _NULL_OR_TRUE,
    "early_stopping": _NULL_OR_FALSE,
    "echo": _NULL_OR_FALSE,
    "guided_choice": _NULL,
    "guided_decoding_backend": _NULL,
    "guided_grammar": _NULL,
    "guided_json": _NULL,
    "guided_regex": _NULL,
    "guided_whitespace_pattern": _NULL,
    "kv_transfer_params": _NULL_OR_EMPTY,
    "length_penalty": (None, 1, 1.0),
    "logits_processors": _NULL_OR_EMPTY,
    "lora": _NULL_OR_EMPTY,
    "lora_request": _NULL_OR_EMPTY,
    "prompt_embeds": _NULL,
    "prompt_logprobs": _NULL,
    "response_format": (None, {"type": "text"}),
    "return_tokens_as_token_ids": _NULL_OR_FALSE,
    "skip_special_tokens": _NULL_OR_TRUE,
    "spaces_between_special_tokens": _NULL_OR_TRUE,
    "structural_tag": _NULL,
    "structured_outputs": _NULL_OR_EMPTY,
    "truncate_prompt_tokens": _NULL,
    "use_beam_search": _NULL_OR_FALSE,
    "vllm_xargs": _NULL_OR_EMPTY,
}

CHAT = _COMMON | {
    "add_generation_prompt": _NULL_OR_TRUE,
    "add_special_tokens": _NULL_OR_FALSE,
    "audio": _NULL,
    "best_of": (None, 1),
    "chat_template": _NULL,
    "chat_template_kwargs": _NULL_OR_EMPTY,
    "continue_final_message": _NULL_OR_FALSE,
    "documents": _NULL_OR_EMPTY,
    "function_call": (None, "none", "auto"),
    "functions": _NULL_OR_EMPTY,
    "mm_processor_kwargs": _NULL_OR_EMPTY,
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "prediction": _NULL,
    "reasoning_effort": (None, "none"),
    "store": _NULL_OR_FALSE,
    "tool_choice": (None, "none", "auto"),
    "tools": _NULL_OR_EMPTY,
    "verbosity": (None, "medium"),
    "web_search_options": _NULL,
}

COMPLETION = _COMMON | {
    "add_special_tokens": _NULL_OR_TRUE,
    "best_of": (None, 1),
    "suffix": _NULL_OR_EMPTY,
}

MESSAGE: dict[str, tuple[object, ...]] = {
    "audio": _NULL,
    "function_call": _NULL,
    "refusal": _NULL_OR_EMPTY,
    "tool_call_id": _NULL,
    "tool_calls": _NULL_OR_EMPTY,
}

STREAM_OPTIONS: dict[str, tuple[object, ...]] = {"continuous_usage_stats": _NULL_OR_FALSE}

TOKENIZE: dict[str, tuple[object, ...]] = {
    name: CHAT[name]
    for name in (
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "mm_processor_kwargs",
        "tools",
    )
}


def refuse_unsupported(
    document: Mapping[str, object], fields: Mapping[str, tuple[object, ...]], prefix: str = ""
) -> None:
    """Raise InvalidRequest for the first field that asks for something not supported.

    Args:
        document: a JSON object of the request.
        fields: a table of this module.
        prefix: where the object is, ending in a dot, for the error.
    """
    for name, neutral in fields.items():
        if name not in document:
            continue
        value = document[name]
        # 1 and True are equal, but only one of them is the default of `best_of`.
        if not any(type(value) is type(empty) and value == empty for empty in neutral):
            raise InvalidRequest(
                f"{prefix}{name} is not supported with this value; leave it out.",
                f"{prefix}{name}",
            )
