"""Manifests are what Kubernetes and the operators accept, locked down and upgradable (E8-E10, E12,
E13)."""

import re
from typing import Any

import kubernetes_validate
import pytest
from tests.support.charts import (
    CASES,
    CHART,
    Manifest,
    helm,
    of_kind,
    pods,
    render,
)

NAMES = [path.name.removesuffix("-values.yaml") for path in CASES]
cases = pytest.mark.parametrize("name", NAMES)
VERSIONS = ("1.29", "1.31", "1.33", "1.35", "1.37")
# Kinds of operators, whose shape is checked below.
FOREIGN = {"RayCluster", "ScaledObject", "ServiceMonitor", "PrometheusRule"}
LONG = "a-release.with-dots-and-a-name-that-is-long-0123456789"


@cases
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_them(name: str, version: str) -> None:
    manifests = render(name)
    own = [one for one in manifests if one["kind"] not in FOREIGN]
    assert len(own) >= 4
    for one in own:
        kubernetes_validate.validate(one, version, strict=True)
    for one in manifests:
        if one["kind"] == "RayCluster":
            for _, found in pods([one]):
                inner = {"apiVersion": "v1", "kind": "Pod", **found}
                inner["metadata"] = {"name": "x", **found["metadata"]}
                kubernetes_validate.validate(inner, version, strict=True)


@cases
def test_pods_are_locked_down(name: str) -> None:
    for component, found in pods(render(name)):
        spec = found["spec"]
        assert spec["automountServiceAccountToken"] is False, component
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for one in spec["containers"]:
            security = one["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert one["resources"]["limits"].keys() >= {"cpu", "memory"}
            writable = [m for m in one["volumeMounts"] if not m.get("readOnly")]
            assert {m["mountPath"] for m in writable} <= {"/tmp", "/dev/shm"}


def test_service_accounts_bring_no_token() -> None:
    assert of_kind(render("ray-cpu"), "ServiceAccount")["automountServiceAccountToken"] is False


def test_network_policies_let_in_clients_and_the_release() -> None:
    manifests = render("ray-gpu")
    within = of_kind(manifests, "NetworkPolicy", "twinflow")["spec"]
    clients = of_kind(manifests, "NetworkPolicy", "-clients")["spec"]
    release = {"podSelector": within["podSelector"]}
    assert within["policyTypes"] == ["Ingress", "Egress"]
    assert [rule["from"] for rule in within["ingress"]] == [[release]]
    assert within["egress"][0] == {"to": [release]}
    for _, found in pods(manifests):
        labels = found["metadata"]["labels"]
        assert within["podSelector"]["matchLabels"].items() <= labels.items()
    (rule,) = clients["ingress"]
    assert [port["port"] for port in rule["ports"]] == ["http", "grpc"]
    assert not [one for one in render("ray-mixed") if one["kind"] == "NetworkPolicy"]


def test_a_raycluster_is_what_kuberay_reads() -> None:
    cluster = of_kind(render("kuberay"), "RayCluster")
    assert cluster["apiVersion"] == "ray.io/v1"
    spec = cluster["spec"]
    assert spec.keys() == {
        "rayVersion",
        "enableInTreeAutoscaling",
        "headGroupSpec",
        "workerGroupSpecs",
    }
    head = spec["headGroupSpec"]
    assert head.keys() == {"serviceType", "rayStartParams", "template"}
    assert head["rayStartParams"]["num-cpus"] == "0"
    groups = spec["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["prefill", "decode"]
    for group in groups:
        sizes = {group[key] for key in ("replicas", "minReplicas", "maxReplicas")}
        assert sizes == {2}
    for group in (head, *groups):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        annotations = group["template"]["metadata"]["annotations"]
        # Without it the operator would replace the commands by its own.
        assert annotations["ray.io/overwrite-container-cmd"] == "true"


def test_the_version_of_ray_is_the_one_that_is_tested() -> None:
    pinned = re.search(r"^ray==(.+)$", (CHART.parents[1] / "constraints.txt").read_text(), re.M)
    assert pinned
    assert of_kind(render("kuberay"), "RayCluster")["spec"]["rayVersion"] == pinned[1]


def test_autoscalers_scale_the_deployment() -> None:
    for name, kind, low, high in (
        ("pod-hpa", "HorizontalPodAutoscaler", "minReplicas", "maxReplicas"),
        ("pod-keda", "ScaledObject", "minReplicaCount", "maxReplicaCount"),
    ):
        manifests = render(name)
        scaler, target = of_kind(manifests, kind)["spec"], of_kind(manifests, "Deployment")
        assert scaler["scaleTargetRef"]["name"] == target["metadata"]["name"]
        # Who scales says how many there are; an upgrade must not.
        assert "replicas" not in target["spec"]
        assert 1 <= scaler[low] <= scaler[high]
    triggers = of_kind(render("pod-keda"), "ScaledObject")["spec"]["triggers"]
    assert [trigger["type"] for trigger in triggers] == ["prometheus", "prometheus"]
    for trigger in triggers:
        assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())


@pytest.mark.parametrize("name", ["ray-gpu", "pod-hpa"])
def test_budgets_select_pods(name: str) -> None:
    manifests = render(name)
    labels = [found["metadata"]["labels"] for _, found in pods(manifests)]
    budgets = [one for one in manifests if one["kind"] == "PodDisruptionBudget"]
    assert len(budgets) == (2 if name == "ray-gpu" else 1)
    for budget in budgets:
        wanted = budget["spec"]["selector"]["matchLabels"].items()
        assert len([one for one in labels if wanted <= one.items()]) == 1


@cases
def test_an_upgrade_leaves_selectors_alone(name: str) -> None:
    later = {
        "image": {"tag": "9.9.9"},
        "commonLabels": {"team": "x"},
        "serve": {"maxModelLen": 1024},
        "prefill": {"podLabels": {"a": "b"}},
        "pod": {"podLabels": {"a": "b"}},
    }
    assert selectors(render(name)) == selectors(render(name, later))


def selectors(manifests: list[Manifest]) -> dict[tuple[str, str], Any]:
    """What cannot be changed of a manifest once it exists."""
    return {
        (one["kind"], one["metadata"]["name"]): one["spec"]["selector"]
        for one in manifests
        if one["kind"] in {"Deployment", "Service"}
    }


@cases
@pytest.mark.parametrize("release", [LONG[:53], "Twinflow.7".lower()])
def test_names_are_dns_labels_whatever_the_release_is_called(name: str, release: str) -> None:
    for one in render(name, release=release):
        if one["metadata"]["name"] == "extra":
            continue
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", one["metadata"]["name"])
        for value in one["metadata"].get("labels", {}).values():
            assert re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,61})?[A-Za-z0-9]", value), value


@pytest.mark.parametrize("name", ["ray-cpu", "kuberay", "ray-mixed", "pod-hpa"])
def test_notes_say_what_to_do_next(name: str) -> None:
    values = str(CHART / f"ci/{name}-values.yaml")
    ran = helm("install", "r", ".", "--dry-run=client", "--values", values)
    assert ran.returncode == 0, ran.stderr
    notes = ran.stdout.partition("NOTES:")[2]
    assert "helm test" in notes and "port-forward service/r-twinflow" in notes
    assert ("WARNING: there is no API key" in notes) == (name == "ray-mixed")
    assert ("is not replaced" in notes) == (not name.startswith("pod-"))
