"""Rules and dashboard ask for metrics that a gateway exports, and nothing else."""

import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from tests.support.charts import CHART, of_kind, render
from tests.support.documents import Document, code_in

from twinflow.cluster.gateway.metrics import GatewayMetrics
from twinflow.cluster.gateway.worker_metrics import _LABELS as WORKER_LABELS
from twinflow.protos.twinflow.internal.v1 import worker_pb2

RULES = yaml.safe_load((CHART / "files/rules.yaml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((CHART / "files/dashboard.json").read_text())
_METRIC = re.compile(r"\b(?:twinflow|vllm):[a-z0-9_]+(?::p99)?")


def exported() -> dict[str, frozenset[str]]:
    """Names of samples that a gateway with a worker exports, and their labels."""
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry, "tiny")
    metrics.observe_worker("decode-0", "decode", worker_pb2.WorkerStats())
    found: dict[str, frozenset[str]] = {}
    for family in registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        for suffix in suffixes.get(family.type, [""]):
            labels = {label for sample in family.samples for label in sample.labels}
            found[family.name + suffix] = frozenset(labels)
    return found


def expressions() -> list[str]:
    """Every question that rules and dashboard ask."""
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    variables = [one["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    return [rule["expr"] for rule in RULES] + targets + variables


def test_every_metric_is_exported() -> None:
    known = exported().keys()
    asked = {name for expression in expressions() for name in _METRIC.findall(expression)}
    assert asked <= known, asked - known
    assert len(asked) > 25


def test_every_gauge_of_a_worker_is_on_the_dashboard() -> None:
    shown = {name for text in expressions() for name in _METRIC.findall(text)}
    of_workers = {name for name, labels in exported().items() if set(WORKER_LABELS) <= labels}
    assert len(of_workers) > 15
    assert of_workers <= shown, of_workers - shown


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert", rule.get("record")))
def test_a_rule_is_whole(rule: dict[str, Any]) -> None:
    if "record" in rule:
        assert rule.keys() == {"record", "expr"}
        return
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"].keys() == {"summary", "description"}
    # What a text names must be left over by the question.
    named = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    grouped = re.search(r"by \(([^)]*)\)", rule["expr"])
    assert grouped and named <= set(grouped[1].split(", "))


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]}
    assert len(places) == len(ids)
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    used = {name for text in expressions() for name in re.findall(r"\$(\w+)", text)}
    assert used - {"__rate_interval"} <= variables


def test_rules_and_dashboard_are_in_the_chart() -> None:
    manifests = render("ray-gpu")
    assert of_kind(manifests, "PrometheusRule")["spec"]["groups"][0]["rules"] == RULES
    config = of_kind(manifests, "ConfigMap", "-dashboard")
    assert json.loads(config["data"]["twinflow.json"]) == DASHBOARD
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_the_monitor_scrapes_the_gateway_with_a_key() -> None:
    monitor = of_kind(render("ray-gpu"), "ServiceMonitor")["spec"]
    service = of_kind(render("ray-gpu"), "Service", "twinflow")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    assert endpoint["authorization"]["credentials"] == {"name": "scrape", "key": "key"}
    (open_one,) = of_kind(
        render("ray-mixed", {"monitoring": {"serviceMonitor": {"enabled": True}}}), "ServiceMonitor"
    )["spec"]["endpoints"]
    assert "authorization" not in open_one


def test_the_alerts_are_documented() -> None:
    page = Document.read(CHART.parents[1] / "docs/deploy.md")
    documented = [code_in(name)[0] for name, _ in page.table("alert", "means")]
    assert documented == [rule["alert"] for rule in RULES if "alert" in rule]
