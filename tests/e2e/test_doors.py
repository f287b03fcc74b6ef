"""The commands that `twinflow serve` prints work, and so does what an operator looks at."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from tests.support.deployments import Deployment, wait_until

from twinflow import Client

PROMPT = "The capital of France is"
ANSWER = "The capital of France is Paris."
READY_S = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def printed(deployment: Deployment, command: str) -> list[str]:
    """The words of the command that the summary offers."""
    (line,) = re.findall(rf"^{command} .*$", deployment.log, re.MULTILINE)
    return shlex.split(line)


def run(*words: str) -> str:
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for what a busy machine may be late with: a probe has to come back within 4 s."""
    wait_until(condition, what, READY_S)


def documents(text: str) -> list[dict[str, Any]]:
    """JSON documents, one after the other."""
    decoder, found, rest = json.JSONDecoder(), [], text.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        found.append(document)
        rest = rest[end:].strip()
    return found


def test_the_printed_curl_line(real_deployment: Deployment) -> None:
    """Sent by another client, because not every machine has curl; greedy, to know the answer."""
    words = printed(real_deployment, "curl")
    headers = [words[index + 1] for index, word in enumerate(words) if word == "-H"]
    response = httpx.post(
        next(word for word in words if word.startswith("http")),
        json=json.loads(words[words.index("-d") + 1]) | {"temperature": 0},
        headers=dict(header.split(": ", 1) for header in headers),
        timeout=120,
        trust_env=False,
    )
    assert response.status_code == 200
    lines = [line for line in response.text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-1]]
    assert choices[0]["delta"]["role"] == "assistant"
    assert "".join(choice["delta"].get("content", "") for choice in choices) == ANSWER
    assert choices[-1]["finish_reason"] == "stop"


def test_the_printed_grpcurl_line(real_deployment: Deployment) -> None:
    words = printed(real_deployment, "grpcurl")
    place = words.index("-d") + 1
    body = json.loads(words[place])
    body["input"]["sampling"] = {"temperature": 0}
    words[place] = json.dumps(body)
    messages = documents(run(*words))
    assert "".join(message.get("chunk", {}).get("text", "") for message in messages) == ANSWER
    usage = messages[-1]["complete"]["usage"]
    # Versions of grpcurl write a field's name in one way or the other.
    assert usage.get("completionTokens", usage.get("completion_tokens")) == 8


def test_grpcurl_lists_describes_and_calls(real_deployment: Deployment) -> None:
    target = real_deployment.grpc_target
    services = run("grpcurl", "-plaintext", target, "list").split()
    assert {"twinflow.v1.Inference", "grpc.health.v1.Health"} <= set(services)
    assert "rpc GenerateStream" in run(
        "grpcurl", "-plaintext", target, "describe", "twinflow.v1.Inference"
    )
    body = json.dumps(
        {
            "input": {
                "model": real_deployment.model,
                "text": PROMPT,
                "sampling": {"temperature": 0},
                "stopping": {"maxTokens": 2},
            }
        }
    )
    call = run("grpcurl", "-plaintext", "-d", body, target, "twinflow.v1.Inference/Generate")
    (completion,) = json.loads(call)["completions"]
    assert completion["text"] == " Paris."
    health = (*("grpcurl", "-plaintext", target), "grpc.health.v1.Health/Check")
    eventually(lambda: json.loads(run(*health)) == {"status": "SERVING"}, "gRPC to be ready")


def test_both_doors_give_the_same_answer(real_deployment: Deployment) -> None:
    body = {"model": real_deployment.model, "prompt": PROMPT, "temperature": 0, "max_tokens": 8}
    over_http = httpx.post(f"{real_deployment.http_url}/v1/completions", json=body, timeout=120)
    with Client(real_deployment.grpc_target) as client:
        over_grpc = client.generate(PROMPT, temperature=0, max_tokens=8)
    assert over_grpc.outputs[0].text == over_http.json()["choices"][0]["text"]


def test_ready_proves_every_pair(real_deployment: Deployment) -> None:
    pairs = ["prefill-0→decode-0: ok"]
    expected = {"ready": True, "reason": "", "pairs": pairs, "degraded": False}

    def ready() -> bool:
        response = httpx.get(f"{real_deployment.http_url}/ready", timeout=30, trust_env=False)
        assert response.status_code == (200 if response.json()["ready"] else 503)
        return bool(response.json() == expected)

    eventually(ready, "HTTP to be ready")
    with Client(real_deployment.grpc_target) as client:
        eventually(client.ready, "gRPC to be ready")


def test_metrics_tell_of_hand_offs(real_deployment: Deployment) -> None:
    def handed_off() -> float:
        return real_deployment.scrape().value("twinflow:handoffs_completed_total")

    before = handed_off()
    with Client(real_deployment.grpc_target) as client:
        client.generate("A prompt that nobody has sent before:", max_tokens=2)
    eventually(lambda: handed_off() > before, "the hand-off to be reported")
    metrics = real_deployment.wait_idle()
    assert metrics.workers == {"prefill-0", "decode-0"}
    assert metrics.value("twinflow:handoff_bytes_total") > 0
    assert metrics.value("twinflow:handoffs_failed_total") == 0
    assert metrics.finished == metrics.accepted > 0
    assert metrics.value("vllm:time_to_first_token_seconds_count") > 0
