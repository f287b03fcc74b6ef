"""Reads the file of `--config`: one mapping of flag names to values, in YAML or JSON.

Keys are flag names without their dashes in front; `max-model-len` and `max_model_len` are the same
key. Whether a value is any good is decided where all settings are checked; a key that does not
exist, or that stands twice, is an error here.
"""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from twinflow.cluster.config import ServeConfig
from twinflow.protos.errors import ConfigError
from twinflow.runtime.nearest import did_you_mean

MAX_BYTES = 1 << 20


class StrictLoader(yaml.SafeLoader):
    """YAML without arbitrary objects, as ever, and without keys that overrule an earlier line."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _refuse_repeats(keys)
        return super().construct_mapping(node, deep)


def read(path: Path) -> tuple[dict[str, object], list[str]]:
    """The settings of a config file by field name, and complaints about keys that do not exist.

    Raises:
        ConfigError: the file cannot be read, is too large, or is not one mapping.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes, this is no config file")
        document = _parse(content.decode("utf-8-sig"), as_json=path.suffix == ".json")
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if document is None:
        return {}, []
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a mapping such as `port: 8000`, one line per setting")
    return _known(document, path)


def _parse(text: str, *, as_json: bool) -> object:
    if as_json:
        return json.loads(text, object_pairs_hook=_unique_mapping)
    loader = StrictLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _unique_mapping(pairs: list[tuple[str, object]]) -> dict[str, object]:
    _refuse_repeats([key for key, _ in pairs])
    return dict(pairs)


def _refuse_repeats(keys: list[Any]) -> None:
    repeated = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
    if repeated is not None:
        raise ValueError(f"the key {repeated!r} stands twice")


def _known(document: dict[object, object], path: Path) -> tuple[dict[str, object], list[str]]:
    settings: dict[str, object] = {}
    complaints = []
    for key, value in document.items():
        field = str(key).replace("-", "_")
        if field not in ServeConfig.model_fields:
            names = [name.replace("_", "-") for name in ServeConfig.model_fields]
            complaints.append(f"{path}: unknown key {key!r}{did_you_mean(str(key), names)}")
        elif field in settings:
            complaints.append(f"{path}: the key {key!r} stands twice, with a dash and without")
        else:
            settings[field] = value
    return settings, complaints
