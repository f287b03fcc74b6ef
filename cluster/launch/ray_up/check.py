"""What is wrong with a file for `ray up`, as far as the file itself tells.

Ray's own check accepts a file without a name for the cluster, an address that is none, a GPU under
another name, and a cluster whose ports take orders from anybody; what it refuses, it refuses one at
a time. This one says everything at once, each complaint with its key and what to do. It asks no
cloud and no machine: whether there is such an instance type is not known here.
"""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from twinflow.cluster.cli.config_file import StrictLoader
from twinflow.cluster.launch.ray_up import PROVIDERS
from twinflow.cluster.launch.ray_up.commands import command_complaints
from twinflow.cluster.launch.ray_up.node_types import node_type_complaints
from twinflow.cluster.launch.ray_up.providers import provider_complaints
from twinflow.protos.errors import ConfigError
from twinflow.runtime.nearest import did_you_mean

Document = dict[str, Any]
_MAX_BYTES = 1 << 20
_EXAMPLE = "example"


def example(provider: str) -> str:
    """The file for a provider, to be edited.

    Raises:
        ConfigError: there is none for it.
    """
    if provider not in PROVIDERS:
        raise ConfigError(
            f"{provider}: there is no example for it"
            + did_you_mean(provider, PROVIDERS, otherwise=f"; choose from {', '.join(PROVIDERS)}")
        )
    return Path(__file__).with_name(f"{provider}.yaml").read_text(encoding="utf-8")


def read(path: Path) -> Document:
    """A file for `ray up`.

    Raises:
        ConfigError: it cannot be read, or is not one mapping.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_BYTES} bytes, this is no cluster file")
        loader = StrictLoader(content.decode("utf-8-sig"))
        try:
            document = loader.get_single_data()
        finally:
            loader.dispose()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a mapping such as `cluster_name: twinflow`")
    return document


def complaints(document: Document) -> list[str]:
    """Everything that is wrong, each with its key."""
    broken = list(_schema_complaints(document))
    if broken:
        return broken  # what has the wrong type cannot be looked at more closely
    return [
        *_cluster_complaints(document),
        *provider_complaints(document),
        *node_type_complaints(document),
        *command_complaints(document),
        *_file_complaints(document),
    ]


def ray_schema() -> dict[str, Any]:
    """The schema that the installed Ray checks such files with.

    Raises:
        ConfigError: Ray is not installed.
    """
    found = importlib.util.find_spec("ray")
    if found is None or not found.submodule_search_locations:
        raise ConfigError("Ray is not installed, and its schema is what the file is checked with")
    path = Path(found.submodule_search_locations[0]) / "autoscaler/ray-schema.json"
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def _schema_complaints(document: Document) -> Iterator[str]:
    schema = ray_schema()
    validator = jsonschema.Draft7Validator(schema)
    for error in sorted(validator.iter_errors(document), key=lambda one: list(map(str, one.path))):
        where = ".".join(map(str, error.absolute_path))
        if error.validator == "additionalProperties" and isinstance(error.instance, dict):
            known = error.schema.get("properties", {})
            for key in error.instance.keys() - known.keys():
                full = f"{where}.{key}" if where else str(key)
                yield f"{full}: unknown key{did_you_mean(str(key), known)}"
        elif error.validator == "required":
            missing = next(name for name in error.validator_value if name not in error.instance)
            yield f"{where}.{missing}".lstrip(".") + ": missing"
        else:
            yield f"{where}: {error.message}"


def _cluster_complaints(document: Document) -> Iterator[str]:
    name = document.get("cluster_name", "")
    if not name or not name.replace("-", "").isalnum() or name != name.lower():
        yield (
            f"cluster_name {name!r}: must be lower-case letters, digits and dashes; Ray finds the "
            "machines of the cluster by it"
        )
    auth = document.get("auth", {})
    if not auth.get("ssh_user"):
        yield "auth.ssh_user: missing; the user as whom Ray logs in on every machine"
    for key in ("ssh_private_key", "ssh_public_key"):
        if key in auth and not Path(auth[key]).expanduser().is_file():
            yield f"auth.{key} {auth[key]}: no such file on this machine"
    docker = document.get("docker", {})
    if docker and not docker.get("container_name"):
        yield "docker.container_name: missing; Ray cannot enter a container that has no name"
    if _EXAMPLE in docker.get("image", ""):
        yield f"docker.image {docker['image']}: is an example; name an image that machines can pull"


def _file_complaints(document: Document) -> Iterator[str]:
    for remote, local in document.get("file_mounts", {}).items():
        if not Path(str(local)).expanduser().exists():
            hint = ""
            if "auth_token" in remote:
                hint = "; make it with: ray get-auth-token --generate"
            yield f"file_mounts.{remote} {local}: does not exist on this machine{hint}"
