"""The chart in `helm/twinflow`, rendered by Helm itself."""

import copy
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/twinflow"
HELM = ROOT / ".tools/helm"
CASES = sorted((CHART / "ci").glob("*-values.yaml"))
RELEASE = "release"

Manifest = dict[str, Any]


def require_helm() -> Path:
    """Helm; fails with the command that fetches it."""
    assert HELM.is_file(), f"{HELM} is missing: run `make tools`"
    return HELM


def helm(*arguments: str, values: str = "") -> "subprocess.CompletedProcess[str]":
    """Run Helm in the chart's folder, `values` as its last values file."""
    given = ["--values", "-"] if values else []
    return subprocess.run(
        [str(require_helm()), *arguments, *given],
        input=values,
        cwd=CHART,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with changes on top, as Helm merges them."""
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def case(name: str) -> dict[str, Any]:
    """The values of one of the chart's cases."""
    values: dict[str, Any] = yaml.safe_load((CHART / f"ci/{name}-values.yaml").read_text())
    return values


def refusal(name: str, changes: Mapping[str, Any]) -> str:
    """What Helm says to the values of a case with changes; it must refuse them."""
    values = yaml.safe_dump(merged(case(name), changes))
    ran = helm("template", RELEASE, ".", values=values)
    assert ran.returncode != 0, ran.stdout[:2000]
    return ran.stderr


@cache
def _rendered(release: str, values: str) -> list[Manifest]:
    ran = helm("template", release, ".", "--namespace", "serving", values=values)
    assert ran.returncode == 0, ran.stderr
    return [one for one in yaml.safe_load_all(ran.stdout) if one]


def render(
    name: str, changes: Mapping[str, Any] | None = None, release: str = RELEASE
) -> list[Manifest]:
    """The manifests of a case, with changes to its values."""
    return _rendered(release, yaml.safe_dump(merged(case(name), changes or {})))


def of_kind(manifests: list[Manifest], kind: str, suffix: str = "") -> Manifest:
    """The only manifest of a kind whose name ends so."""
    (found,) = [
        one for one in manifests if one["kind"] == kind and one["metadata"]["name"].endswith(suffix)
    ]
    return found


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The metadata and spec of every pod, by the name of its component."""
    for one in manifests:
        if one["kind"] == "RayCluster":
            groups = [one["spec"]["headGroupSpec"], *one["spec"]["workerGroupSpecs"]]
            found = [group["template"] for group in groups]
        elif one["kind"] == "Pod":
            found = [one]
        else:
            found = [one["spec"]["template"]] if one["kind"] == "Deployment" else []
        for pod in found:
            yield pod["metadata"]["labels"]["app.kubernetes.io/component"], pod


def pod(manifests: list[Manifest], component: str) -> Manifest:
    """The pod of a component."""
    return dict(pods(manifests))[component]


def container(manifests: list[Manifest], component: str) -> Manifest:
    """The only container of a component's pod."""
    (found,) = pod(manifests, component)["spec"]["containers"]
    result: Manifest = found
    return result


def environment(container: Manifest) -> dict[str, Manifest]:
    """The variables of a container, by name."""
    return {variable["name"]: variable for variable in container["env"]}
