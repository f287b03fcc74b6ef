"""Files for `ray up`: the examples are right, and what Ray would not notice is said (E15)."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from twinflow.cluster.launch.ray_up import PROVIDERS
from twinflow.cluster.launch.ray_up.check import complaints, example, read
from twinflow.protos.errors import ConfigError

Document = dict[str, Any]
Change = Callable[[Document], object]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Stands for keys and tokens, which only have to exist."""
    path = tmp_path / "key"
    path.write_text("secret")
    return path


@pytest.fixture
def edited(key: Path) -> Callable[[str], Document]:
    """The example for a provider, as somebody would have edited it."""

    def edit(provider: str) -> Document:
        text = example(provider).replace("registry.example/", "registry.internal/")
        text = text.replace("example-", "our-").replace("192.0.2.", "10.1.2.")
        document: Document = yaml.safe_load(text)
        document["file_mounts"] = dict.fromkeys(document["file_mounts"], str(key))
        for name in ("ssh_private_key", "ssh_public_key"):
            if name in document["auth"]:
                document["auth"][name] = str(key)
        return document

    return edit


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_edited_example_is_right(provider: str, edited: Callable[[str], Document]) -> None:
    document = edited(provider)
    assert complaints(document) == []
    # Ray fills in what is missing, asks no cloud, and raises for what its schema does not have.
    validate_config(prepare_config(copy.deepcopy(document)))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_example_as_it_is_must_be_edited(provider: str) -> None:
    assert any("is an example" in one for one in complaints(yaml.safe_load(example(provider))))


@pytest.mark.parametrize("provider", set(PROVIDERS) - {"local"})
def test_one_node_type_for_each_pool(provider: str) -> None:
    kinds = yaml.safe_load(example(provider))["available_node_types"]
    assert kinds.keys() == {"head", "prefill", "decode"}
    for role in ("prefill", "decode"):
        resources = kinds[role]["resources"]
        assert resources[f"twinflow_{role}"] == resources["GPU"]


def at(*path: str, to: object) -> Change:
    """Set the value at a path."""

    def change(document: Document) -> None:
        place = document
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = to

    return change


def without(*path: str) -> Change:
    """Remove what is at a path."""

    def change(document: Document) -> None:
        place = document
        for name in path[:-1]:
            place = place[name]
        del place[path[-1]]

    return change


def replaced(key: str, old: str, new: str) -> Change:
    """Change the text of some commands."""
    return lambda d: d.update({key: [text.replace(old, new) for text in d[key]]})


TYPES, HEAD, WORKER = "available_node_types", "head_start_ray_commands", "worker_start_ray_commands"
FAULTS: dict[str, tuple[Change, str]] = {
    "unknown key": (at("max_worker", to=2), "max_worker: unknown key; did you mean max_workers?"),
    "no name": (without("cluster_name"), "cluster_name: missing"),
    "bad name": (at("cluster_name", to="My cluster"), "cluster_name 'My cluster': must be lower"),
    "text for a number": (at("max_workers", to="two"), "max_workers: 'two' is not of type"),
    "negative": (at("idle_timeout_minutes", to=-1), "idle_timeout_minutes: -1 is less than"),
    "no provider": (without("provider"), "provider: missing"),
    "provider": (at("provider", "type", to="awz"), "provider.type 'awz': twinflow knows"),
    "no region": (without("provider", "region"), "provider.region: missing; aws needs it"),
    "provider key": (
        at("provider", "availability_zones", to="a"),
        "provider.availability_zones: unknown key, which Ray would ignore; did you mean",
    ),
    "no user": (without("auth"), "auth.ssh_user: missing"),
    "no key": (at("auth", "ssh_private_key", to="/none"), "auth.ssh_private_key /none: no such"),
    "key of auth": (at("auth", "ssh_key", to="x"), "auth.ssh_key: unknown key; did you mean"),
    "container": (without("docker", "container_name"), "docker.container_name: missing"),
    "head type": (at("head_node_type", to="heda"), "'heda': is not in available_node_types; did"),
    "type key": (
        at(TYPES, "decode", "min_worker", to=1),
        f"{TYPES}.decode.min_worker: unknown key; did you mean min_workers?",
    ),
    "min over max": (
        at(TYPES, "decode", "min_workers", to=3),
        "decode.min_workers: 3 is more",
    ),
    "sum over max": (at("max_workers", to=1), "max_workers: 1 is less than the min_workers of all"),
    "head is a worker": (
        at(TYPES, "head", "min_workers", to=1),
        "head.min_workers: the head is",
    ),
    "gpu": (
        at(TYPES, "decode", "resources", "gpu", to=8),
        "resources.gpu: a resource of yours",
    ),
    "pool": (
        at(TYPES, "decode", "resources", "twinflow_decod", to=8),
        "resources.twinflow_decod: there is no such pool; did you mean twinflow_decode?",
    ),
    "half a GPU": (
        at(TYPES, "decode", "resources", "GPU", to=0.5),
        f"{TYPES}.decode.resources.GPU: 0.5 is not of type 'integer'",
    ),
    "room": (
        at(TYPES, "decode", "resources", "twinflow_decode", to=9),
        "resources.twinflow_decode: room for 9 ranks, and 8 GPUs",
    ),
    "one pool": (
        without(TYPES, "decode", "resources", "twinflow_decode"),
        "no type declares twinflow_decode, and none twinflow_mixed",
    ),
    "no machine": (
        lambda d: [kind.pop("min_workers", None) for kind in d[TYPES].values()],
        "no type has min_workers",
    ),
    "no head": (at(HEAD, to=["ray stop"]), f"{HEAD}: no command is `ray start --head`"),
    "no autoscaler": (replaced(HEAD, "--autoscaling", "--x"), "without --autoscaling-config"),
    "no address": (replaced(WORKER, "--address", "--x"), f"{WORKER}: no command is"),
    "port": (replaced(HEAD, "6379", "70000"), "--port=70000: is no port"),
    "port of workers": (replaced(HEAD, "6379", "16379"), "ports 10002 to 19999 to its workers"),
    "ports differ": (replaced(WORKER, "6379", "6380"), "asks port 6380, and the head listens on"),
    "dashboard": (
        replaced(HEAD, "--include-dashboard=false", "--dashboard-host=0.0.0.0"),
        "the dashboard runs code for whoever reaches it",
    ),
    "no tokens": (replaced(WORKER, "RAY_AUTH_MODE=token", ""), f"{WORKER}: without RAY_AUTH_MODE"),
    "token in clear": (
        replaced(HEAD, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=abc"),
        "RAY_AUTH_TOKEN: a token in a file is read by everybody",
    ),
    "token stays here": (at("file_mounts", to={}), "file_mounts: the token does not reach"),
    "no file": (at("file_mounts", "~/x", to="/none"), "file_mounts.~/x /none: does not exist"),
    "nothing installed": (without("docker"), "setup_commands: nothing installs twinflow"),
    "commands": (
        at("setup_commands", to="pip install x"),
        "setup_commands: 'pip install x' is",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said_with_its_key(fault: str, edited: Callable[[str], Document]) -> None:
    change, sentence = FAULTS[fault]
    document = edited("aws")
    change(document)
    found = complaints(document)
    assert any(sentence in one for one in found), found
    # Nothing else is complained about but what follows from it.
    assert len(found) <= 2, found


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            at("provider", "head_ip", to="not an ip"),
            "provider.head_ip 'not an ip': is no IP",
        ),
        (at("provider", "worker_ips", to=["10.1.2.10"]), "worker_ips.0 10.1.2.10: stands twice"),
        (at("provider", "worker_ips", to=[]), "provider.worker_ips: empty"),
        (without("provider", "worker_ips"), "provider.worker_ips: missing; local needs it"),
        (at(TYPES, to={"a": {"resources": {}, "node_config": {}}}), "Ray has none with provider"),
    ],
)
def test_faults_of_machines_of_ones_own(
    change: Change, sentence: str, edited: Callable[[str], Document]
) -> None:
    document = edited("local")
    change(document)
    (found,) = complaints(document)
    assert sentence in found


def test_several_faults_at_once(edited: Callable[[str], Document]) -> None:
    document = edited("aws")
    for fault in ("bad name", "no region", "gpu", "no tokens"):
        FAULTS[fault][0](document)
    assert len(complaints(document)) == 4


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: [1", "line 1"),
        ("a:\n\t- b", "line 2"),
        ("cluster_name: a\ncluster_name: b", "the key 'cluster_name' stands twice"),
        ("- a", "must be a mapping"),
        ("", "must be a mapping"),
    ],
)
def test_files_that_are_no_mapping(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "none.yaml")
