"""Flags made from a configuration class, so that no flag can differ from its field.

Name, help text and default of a flag are those of the field. argparse only splits the command
line here: values stay text, and a flag that was not given leaves no trace, because which source
wins and what a value may be is decided elsewhere.
"""

import argparse
from collections.abc import Sequence
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from twinflow.cluster.config import Group, ServeConfig
from twinflow.protos.errors import ConfigError
from twinflow.runtime.nearest import nearest

POSITIONAL = "model"

# What users of other engines may type, and what to tell them.
PEER_FLAGS = {
    "--model": "the model is an argument without a flag: twinflow serve MODEL",
    "--model-path": "the model is an argument without a flag: twinflow serve MODEL",
    "--context-length": "it is --max-model-len here",
    "--max-running-requests": "it is --max-num-seqs here",
    "--max-queued-requests": "it is --max-num-queued-reqs here",
    "--page-size": "it is --block-size here",
    "--disable-radix-cache": "it is --no-enable-prefix-caching here",
    "--disaggregation-mode": "one command starts all pools: --prefill N --decode N --mixed N",
    "--tp": "it is --tensor-parallel-size here",
    "--tp-size": "it is --tensor-parallel-size here",
    "--ep-size": "it is --enable-expert-parallel here, over all ranks of a worker",
    "--data-parallel-size": "give the pools more workers: --prefill N --decode N --mixed N",
    "--pipeline-parallel-size": "layers are not spread over ranks; use --tensor-parallel-size",
    "--gpu-memory-utilization": "give each worker's share as --kv-cache-memory",
    "--trust-remote-code": "twinflow never runs code from a model directory",
}


def flag_name(field: str) -> str:
    """What a field is called on the command line: `max_model_len` is `--max-model-len`."""
    return "MODEL" if field == POSITIONAL else "--" + field.replace("_", "-")


def number_above_0(field: str, text: str) -> float:
    """The value of a flag.

    Raises:
        ConfigError: it is no finite number, or not above 0.
    """
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0.0 < found < float("inf"):
        raise ConfigError(f"{flag_name(field)} {text!r}: must be a number above 0")
    return found


def whole_number(field: str, text: str) -> int:
    """The value of a flag, at least 0.

    Raises:
        ConfigError: it is no whole number.
    """
    if not text.isdecimal():
        raise ConfigError(f"{flag_name(field)} {text!r}: must be a whole number")
    return int(text)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give `parser` a flag for every field of ServeConfig, under the field's heading."""
    headings = {group: parser.add_argument_group(group.value) for group in Group}
    for name, field in ServeConfig.model_fields.items():
        add_flag(headings[next(item for item in field.metadata if isinstance(item, Group))], name)


def add_flag(heading: "argparse._ArgumentGroup", name: str) -> None:
    """Put the flag of one field of ServeConfig under a heading, of `serve` or another command."""
    field = ServeConfig.model_fields[name]
    if name == POSITIONAL:
        heading.add_argument(name, metavar=flag_name(name), nargs="?", help=_help(field))
    elif field.annotation is bool:
        heading.add_argument(
            flag_name(name), action=argparse.BooleanOptionalAction, help=_help(field)
        )
    elif get_origin(field.annotation) is tuple:
        heading.add_argument(
            flag_name(name), action="extend", nargs="+", metavar=_noun(name), help=_help(field)
        )
    else:
        heading.add_argument(flag_name(name), metavar=_metavar(name, field), help=_help(field))


def complain_about_unknown(unknown: Sequence[str], valid: Sequence[str]) -> list[str]:
    """A complaint about every flag that does not exist, with the nearest one that does.

    Args:
        unknown: what the parser could not place, in the order of the command line.
        valid: the flags that exist.
    """
    flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    if not flags:
        return [f"{word!r}: one argument too many" for word in unknown]
    return [f"{flag}: unknown flag{_hint(flag, valid)}" for flag in flags]


def _hint(flag: str, valid: Sequence[str]) -> str:
    if flag not in PEER_FLAGS and (near := nearest(flag, valid, prefix="--")):
        return f"; did you mean {near}?"
    peer = nearest(flag, PEER_FLAGS, prefix="--")
    return f"; {PEER_FLAGS[peer]}" if peer else "; --help lists them all"


def _help(field: FieldInfo) -> str:
    sentence = " ".join((field.description or "").split())
    default = field.default
    if default is True or default is False:
        sentence += f" [default: {'on' if default else 'off'}]"
    elif isinstance(default, float):
        sentence += f" [default: {default:g}]"
    elif isinstance(default, str | int):
        sentence += f" [default: {default}]"
    return sentence.replace("%", "%%")


def _noun(name: str) -> str:
    return {"api_key": "KEY", "admin_token": "TOKEN"}.get(name, "NAME")


def _metavar(name: str, field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "{" + ",".join(get_args(field.annotation)) + "}"
    return {"host": "HOST", "kv_cache_memory": "SIZE", "speculative_config": "JSON"}.get(
        name, "SECONDS" if field.annotation is float else "N"
    )
