"""The commands in the manifests are real, and pods start, are found, watched and stopped as they
should be (E7)."""

import base64
import json
import re
import shlex
from typing import Any

import pytest
from ray.scripts.scripts import start
from tests.support.charts import (
    CASES,
    container,
    environment,
    of_kind,
    pod,
    pods,
    render,
)

from twinflow.cluster.cli.main import build_parser
from twinflow.cluster.cli.sources import resolve
from twinflow.cluster.config import ServeConfig
from twinflow.cluster.gateway.http.gate import OPEN_PATHS
from twinflow.cluster.launch.ray_clusters import room_of

NAMES = [path.name.removesuffix("-values.yaml") for path in CASES]
cases = pytest.mark.parametrize("name", NAMES)


def served(name: str, changes: dict[str, Any] | None = None) -> ServeConfig:
    """The configuration that the gateway's container starts, as twinflow itself reads it."""
    gateway = container(render(name, changes), "gateway")
    words = gateway["args"] if "args" in gateway else gateway["command"]
    assert words[:2] == ["twinflow", "serve"]
    given, unknown = build_parser().parse_known_args(words[1:])
    assert not unknown
    flags = {key: value for key, value in vars(given).items() if key not in {"run", "parser"}}
    environ = {"TWINFLOW_API_KEY": "key"} if "TWINFLOW_API_KEY" in environment(gateway) else {}
    return resolve(flags, environ, [])


@cases
def test_the_gateway_serves_what_the_values_say(name: str) -> None:
    config = served(name)
    assert (config.host, config.port, config.grpc_port) == ("0.0.0.0", 8000, 50051)
    assert bool(config.api_keys) != config.insecure
    in_pod = name.startswith("pod-")
    assert (config.launcher, config.address) == (("local", "local") if in_pod else ("ray", "auto"))


def test_pools_and_ranks() -> None:
    config = served("ray-gpu")
    assert config.worker_roles == ["prefill"] * 2 + ["decode"] * 4
    assert (config.ranks("prefill"), config.ranks("decode")) == (4, 2)
    assert (config.device, config.kv_cache_memory) == ("cuda", 40 << 30)
    assert (config.prefill_order, config.shutdown_timeout) == ("spf", 120)
    assert served("ray-mixed").worker_roles == ["mixed"] * 3
    assert served("ray-mixed").ranks("mixed") == 2
    assert served("pod-keda").worker_roles == ["mixed"]
    both = served("ray-cpu", {"mixed": {"enabled": True}})
    assert both.worker_roles == ["prefill", "decode", "mixed"]


@cases
def test_ray_knows_every_option(name: str) -> None:
    manifests = render(name)
    known = {flag for option in start.params for flag in option.opts}
    scripts = [
        (one["command"][2], one.get("args", []))
        for _, found in pods(manifests)
        for one in found["spec"]["containers"]
        if one["command"][0] == "/bin/bash"
    ]
    assert len(scripts) == (
        0 if name.startswith("pod-") else len(list(pods(manifests))) - (name != "ray-mixed")
    )
    for script, arguments in scripts:
        line = next(text for text in script.splitlines() if "ray start" in text)
        words = shlex.split(line.replace('"$@"', shlex.join(a for a in arguments if a[0] == "-")))
        mine = words[words.index("start") + 1 :]
        flags = {word.partition("=")[0] for word in mine if word.startswith("--")}
        if "twinflow" in arguments:  # those are twinflow's
            flags -= {word for word in arguments if word.startswith("--")}
        assert flags <= known, flags - known


@pytest.mark.parametrize("name", ["ray-gpu", "kuberay", "ray-mixed"])
def test_a_worker_pod_has_room_for_one_worker(name: str) -> None:
    manifests, config = render(name), served(name)
    for role in set(config.worker_roles):
        (resources,) = [
            word for word in container(manifests, role)["args"] if word.startswith("--resources")
        ]
        declared = json.loads(resources.partition("=")[2])
        assert room_of(declared) == {role: config.ranks(role)}


def test_a_worker_declares_its_cores_and_gpus_to_ray() -> None:
    arguments = container(render("ray-gpu"), "decode")["args"]
    assert arguments[:2] == ["--num-cpus=16", "--num-gpus=4"]
    assert container(render("ray-cpu"), "decode")["args"][:2] == ["--num-cpus=4", "--num-gpus=0"]


def test_every_process_of_a_deployment_finds_its_certificates() -> None:
    manifests = render("ray-gpu")
    directory = served("ray-gpu").internal_tls
    for role in ("gateway", "prefill", "decode"):
        mounts = container(manifests, role)["volumeMounts"]
        assert [one["readOnly"] for one in mounts if one["mountPath"] == directory] == [True]
        volumes = {one["name"]: one for one in pod(manifests, role)["spec"]["volumes"]}
        assert volumes["internal-tls"]["secret"]["secretName"] == "llm-internal"
    assert served("kuberay").internal_tls is None


@cases
def test_liveness_asks_the_gateway_alone_and_readiness_its_workers(name: str) -> None:
    gateway = container(render(name), "gateway")
    paths = {kind: gateway[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness")}
    assert paths == {"startup": "/health", "liveness": "/health"}
    ready = gateway["readinessProbe"]["httpGet"]["path"]
    assert ready == "/ready?pairs=any"
    assert {"/health", "/ready"} <= OPEN_PATHS
    startup = gateway["startupProbe"]
    # What `serve` waits for a cluster's nodes, and then for its workers.
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 2 * 600


@cases
def test_pods_outlive_the_requests_in_them(name: str) -> None:
    grace = served(name).shutdown_timeout
    for component, found in pods(render(name)):
        if component == "test":
            continue
        (one,) = found["spec"]["containers"]
        sleep = int(one["lifecycle"]["preStop"]["exec"]["command"][1])
        assert found["spec"]["terminationGracePeriodSeconds"] >= sleep + (
            grace + 15 if component == "gateway" else 30
        )
        # Workers are there until the gateway has let its requests finish.
        assert component == "gateway" or sleep >= grace + 5


@cases
def test_services_find_the_pods(name: str) -> None:
    manifests = render(name)
    gateway = pod(manifests, "gateway")["metadata"]["labels"]
    for one in manifests:
        if one["kind"] == "Service":
            assert one["spec"]["selector"].items() <= gateway.items()
            ports = {port["name"] for port in container(manifests, "gateway")["ports"]}
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports
    if not name.startswith("pod-"):
        head = of_kind(manifests, "Service", "-head")
        # The gateway is ready only after the workers have found it by this name.
        assert head["spec"]["publishNotReadyAddresses"] is True
        workers = [found for component, found in pods(manifests) if component != "gateway"]
        hosts = [
            environment(one)["HEAD"]["value"]
            for found in workers
            for one in found["spec"]["containers"]
            if one["name"] == "worker"
        ]
        assert set(hosts) == {head["metadata"]["name"]}


@cases
def test_no_variable_of_a_service_is_taken_for_a_setting(name: str) -> None:
    for _, found in pods(render(name)):
        assert found["spec"]["enableServiceLinks"] is False


@cases
def test_secrets_come_by_reference(name: str) -> None:
    for _, found in pods(render(name)):
        for one in found["spec"]["containers"]:
            for variable in one["env"]:
                if re.search("KEY|TOKEN", variable["name"]):
                    assert "secretKeyRef" in variable["valueFrom"], variable


def test_the_token_of_ray() -> None:
    made = of_kind(render("ray-cpu"), "Secret")
    token = base64.b64decode(made["data"]["token"]).decode()
    assert re.fullmatch("[0-9a-f]{64}", token)
    worker = environment(container(render("ray-cpu"), "decode"))
    assert worker["RAY_AUTH_MODE"]["value"] == "token"
    reference = worker["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": made["metadata"]["name"], "key": "token"}
    assert not [one for one in render("ray-gpu") if one["kind"] == "Secret"]
    given = environment(container(render("ray-gpu"), "decode"))["RAY_AUTH_TOKEN"]
    assert given["valueFrom"]["secretKeyRef"]["name"] == "ray-token"


def test_the_test_pod_asks_the_service() -> None:
    manifests = render("ray-gpu")
    words = container(manifests, "test")["command"]
    assert words[:2] == ["twinflow", "status"]
    _, unknown = build_parser().parse_known_args(words[1:])
    assert not unknown
    assert (
        words[-1] == f"http://{of_kind(manifests, 'Service', 'twinflow')['metadata']['name']}:8000"
    )


def test_another_pool_starts_the_gateway_anew() -> None:
    def mark(changes: dict[str, Any]) -> str:
        annotations = pod(render("ray-cpu", changes), "gateway")["metadata"]["annotations"]
        return str(annotations["twinflow/serve"])

    assert mark({}) == mark({"gateway": {"service": {"port": 80}}})
    assert mark({}) != mark({"decode": {"replicas": 2}})
