"""What is wrong with the commands of a file for `ray up`: how Ray is started, and how guarded."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_HEAD, _WORKER = "head_start_ray_commands", "worker_start_ray_commands"
_TOKEN_MODE = "RAY_AUTH_MODE=token"
_TOKEN_FILE = ".ray/auth_token"
# Ray's own ports for its workers, unless told otherwise.
_WORKER_PORTS = (10002, 19999)
_DEFAULT_PORT = 6379


def command_complaints(document: Mapping[str, Any]) -> Iterator[str]:
    """Everything that is wrong with them."""
    head, worker = _start(document, _HEAD), _start(document, _WORKER)
    if "--head" not in head:
        yield f"{_HEAD}: no command is `ray start --head`"
    elif "--autoscaling-config" not in head:
        yield (
            f"{_HEAD}: without --autoscaling-config=~/ray_bootstrap_config.yaml the head starts no "
            "other machine"
        )
    if not worker.get("--address"):
        yield f"{_WORKER}: no command is `ray start --address=$RAY_HEAD_IP:{_DEFAULT_PORT}`"
    yield from _port_complaints(head, worker)
    if head.get("--dashboard-host") in ("0.0.0.0", "::"):
        yield (
            f"{_HEAD}: --dashboard-host={head['--dashboard-host']}: the dashboard runs code for "
            "whoever reaches it; leave it out and use `ray dashboard`"
        )
    yield from _token_complaints(document)
    yield from _setup_complaints(document)


def _port_complaints(head: Mapping[str, str], worker: Mapping[str, str]) -> Iterator[str]:
    text = head.get("--port", str(_DEFAULT_PORT))
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        yield f"{_HEAD}: --port={text}: is no port"
        return
    first = int(head.get("--min-worker-port", _WORKER_PORTS[0]))
    last = int(head.get("--max-worker-port", _WORKER_PORTS[1]))
    if first <= int(text) <= last:
        yield (
            f"{_HEAD}: --port={text}: Ray gives the ports {first} to {last} to its workers and "
            f"would not start; use {_DEFAULT_PORT}"
        )
    wanted = worker.get("--address", "").rpartition(":")[2]
    if wanted and wanted != text:
        yield f"{_WORKER}: --address asks port {wanted}, and the head listens on {text}"


def _token_complaints(document: Mapping[str, Any]) -> Iterator[str]:
    for key in (_HEAD, _WORKER):
        text = " ".join(document.get(key, []))
        if _TOKEN_MODE not in text:
            yield (
                f"{key}: without {_TOKEN_MODE} before `ray start`, whoever reaches a port of Ray "
                "can run code on all machines"
            )
    everything = str(document)
    if re.search(r"RAY_AUTH_TOKEN=[^$\s'\"]", everything):
        yield (
            "RAY_AUTH_TOKEN: a token in a file is read by everybody who sees the file, and stands "
            "on command lines; mount ~/.ray/auth_token instead"
        )
    elif not any(_TOKEN_FILE in str(remote) for remote in document.get("file_mounts", {})):
        yield (
            "file_mounts: the token does not reach the machines; add ~/.ray/auth_token: "
            "~/.ray/auth_token"
        )


def _setup_complaints(document: Mapping[str, Any]) -> Iterator[str]:
    local = document["provider"]["type"] == "local"
    kinds = document.get("available_node_types", {}).values()
    keys = ("setup_commands", "head_setup_commands", "worker_setup_commands")
    commands = [text for owner in (document, *kinds) for key in keys for text in owner.get(key, [])]
    if not (local or document.get("docker", {}).get("image") or "twinflow" in " ".join(commands)):
        yield "setup_commands: nothing installs twinflow; name a docker.image that has it, or do"


def _start(document: Mapping[str, Any], key: str) -> dict[str, str]:
    """The options of the `ray start` among some commands, without value as empty text."""
    for command in document.get(key, []):
        words = _words(command)
        for index in range(len(words) - 1):
            if words[index].endswith("ray") and words[index + 1] == "start":
                return _options(words[index + 2 :])
    return {}


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command.replace(";", " ; ").replace("&&", " && "))
    except ValueError:  # quotes that are not closed, which the shell will say
        return command.split()


def _options(words: Sequence[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for index, word in enumerate(words):
        if word in (";", "&&", "||", "|"):
            break
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            following = words[index + 1] if index + 1 < len(words) else ""
            options[name] = value if equals else "" if following.startswith("-") else following
    return options
