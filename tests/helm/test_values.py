"""Values that would deploy something broken, or something else than was meant, are refused (E1-E6,
E11, E14), by the schema or in a sentence."""

from typing import Any

import pytest
from tests.support.charts import CASES, helm, refusal, render

LARGE = {"limits": {"cpu": "1", "memory": "1Gi"}}


@pytest.mark.parametrize("values", CASES, ids=[path.stem for path in CASES])
def test_lint(values: Any) -> None:
    ran = helm("lint", "--strict", ".", "--values", str(values))
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"prefill": {"replicas": 0}}, "prefill/replicas"),
        ({"decode": {"replicas": -1}}, "decode/replicas"),
        ({"prefill": {"replicas": "two"}}, "prefill/replicas"),
        ({"prefill": {"replica": 2}}, "'replica' not allowed"),
        ({"prefil": {"replicas": 2}}, "'prefil' not allowed"),
        ({"prefill": {"autoscaling": {"enabled": True}}}, "'autoscaling' not allowed"),
        ({"image": {"repository": ""}}, "image/repository"),
        ({"model": {"path": ""}}, "model/path"),
        ({"model": {"path": "models/relative"}}, "model/path"),
        ({"gateway": {"service": {"port": 0}}}, "service/port"),
        ({"gateway": {"service": {"grpcPort": 70000}}}, "service/grpcPort"),
        ({"gateway": {"service": {"type": "NodePort", "nodePort": 80}}}, "service/nodePort"),
        ({"decode": {"resources": {"limits": {"memory": "16GB"}}}}, "limits/memory"),
        ({"decode": {"resources": {"limits": {"cpu": "two"}}}}, "limits/cpu"),
        ({"decode": {"resources": {"limits": {"gpu": 1}}}}, "'gpu' not allowed"),
        ({"decode": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}}, "nvidia.com~1gpu"),
        ({"prefill": {"env": [{"name": "RAY_AUTH_TOKEN", "value": "x"}]}}, "env/0/name"),
        ({"podSecurityContext": {"runAsUser": 0}}, "runAsUser"),
        ({"apiKey": {"value": "secret"}}, "'value' not allowed"),
    ],
)
def test_the_schema_refuses(changes: dict[str, Any], where: str) -> None:
    assert where in refusal("ray-cpu", changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"apiKey": {"existingSecret": ""}}, "needs API keys: kubectl create secret"),
        ({"apiKey": {"insecure": True}}, "existingSecret and insecure contradict"),
        ({"model": {"volume": {"pvc": "models"}}}, "exclude each other; give one"),
        ({"model": {"volume": {"hostPath": ""}, "subPath": "x"}}, "model.subPath: there is no"),
        ({"gateway": {"service": {"grpcPort": 8000}}}, "HTTP and gRPC need a port each"),
        ({"gateway": {"service": {"nodePort": 30080}}}, "only a service of type NodePort"),
        ({"gateway": {"ingress": {"enabled": True}}}, "gateway.ingress.host: name the host"),
        ({"serve": {"extraArgs": ["--host=0.0.0.0"]}}, "a value of its own"),
        ({"serve": {"extraArgs": ["--api-key", "x"]}}, "put it into the secret"),
        ({"decode": {"enabled": False}}, "enable both, or mixed"),
        ({"decode": {"resources": LARGE}}, "decode.resources.requests.cpu: more than limits.cpu"),
        (
            {"gateway": {"resources": {"requests": {"memory": "9Gi"}}}},
            "gateway.resources.requests.memory: more than limits.memory",
        ),
        ({"serve": {"device": "cuda"}}, "1 ranks need a GPU each: set nvidia.com/gpu to 1"),
        (
            {"prefill": {"resources": {"limits": {"nvidia.com/gpu": 1}}}},
            "would not be used, because serve.device is cpu",
        ),
        ({"model": {"weights": "15Gi"}, "serve": {"kvCacheMemory": "1.5Gi"}}, "16Gi is less than"),
        ({"decode": {"shmSize": "17Gi"}}, "decode.shmSize: shared memory counts as memory"),
        ({"pod": {"keda": {"enabled": True}}}, "pools of a running deployment are fixed"),
    ],
)
def test_a_sentence_refuses(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal("ray-cpu", changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pod": {"decode": 0}}, "give both prefill and decode a worker, or mixed"),
        ({"pod": {"keda": {"enabled": True}}}, "both would set the number of pods"),
        ({"pod": {"autoscaling": {"minReplicas": 7}}}, "minReplicas: more than maxReplicas"),
        (
            {"pod": {"autoscaling": {"enabled": False}, "keda": {"enabled": True}}},
            "pod.keda.prometheus: name the address",
        ),
        (
            {"model": {"weights": "15Gi"}, "serve": {"kvCacheMemory": "1Gi"}},
            "weights (15Gi) and KV caches (1Gi for each of 3 ranks)",
        ),
    ],
)
def test_a_sentence_refuses_in_mode_pod(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal("pod-hpa", changes)


@pytest.mark.parametrize(
    "text",
    [
        "mode: ray\n\tserve: {}",
        "image:\n  tag: x\n pullPolicy: Always",
        "apiKey: {insecure: 'on'}",
        "prefill: {replicas: 1e9}",
        "prefill: {replicas: 07777}",
    ],
)
def test_traps_of_yaml_are_refused(text: str) -> None:
    required = "\nmodel: {path: /m}\n"
    ran = helm(
        "template", "release", ".", "--set", "apiKey.existingSecret=x", values=text + required
    )
    assert ran.returncode != 0
    assert "Error:" in ran.stderr


def test_what_just_fits() -> None:
    assert render("ray-cpu", {"model": {"weights": "15Gi"}, "serve": {"kvCacheMemory": "1Gi"}})
