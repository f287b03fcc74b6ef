"""What Prometheus sees."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from twinflow.cluster.gateway.metrics import GatewayMetrics
from twinflow.protos.errors import Overloaded
from twinflow.protos.twinflow.internal.v1.worker_pb2 import (
    DraftKVStats,
    ExpertLayerStats,
    GoodputStats,
    SpeculationStats,
    WorkerStats,
)
from twinflow.runtime.outputs import FinishReason, PhaseTime


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> GatewayMetrics:
    return GatewayMetrics(registry, "tiny")


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {"model_name": "tiny", **labels})


def test_a_sequence_that_finished(registry: CollectorRegistry, metrics: GatewayMetrics) -> None:
    metrics.accepted(1, prompt_tokens=7)
    assert sample(registry, "twinflow:requests_in_flight") == 1
    metrics.first_token(0.5)
    metrics.inter_token(0.25, 1)
    metrics.delivered(2)
    phases = [
        PhaseTime("queue", 0.1),
        PhaseTime("prefill", 0.2),
        PhaseTime("transfer", 9.0),
        PhaseTime("first_decode", 0.25),
        PhaseTime("decode", 0.5),
        PhaseTime("preempted", 0.4),
    ]
    metrics.ended(FinishReason.STOP, 2.0, phases)
    assert sample(registry, "twinflow:requests_in_flight") == 0
    assert sample(registry, "twinflow:requests_accepted_total") == 1
    assert sample(registry, "vllm:request_success_total", finished_reason="stop") == 1
    assert sample(registry, "vllm:prompt_tokens_total") == 7
    assert sample(registry, "vllm:generation_tokens_total") == 2
    for name, seconds in {
        "time_to_first_token_seconds": 0.5,
        "inter_token_latency_seconds": 0.25,
        "e2e_request_latency_seconds": 2.0,
        "request_queue_time_seconds": 0.5,
        "request_prefill_time_seconds": 0.2,
        "request_decode_time_seconds": 0.75,
    }.items():
        assert sample(registry, f"vllm:{name}_sum") == pytest.approx(seconds)
        assert sample(registry, f"vllm:{name}_count") == 1


def test_aborted_and_failed_sequences(registry: CollectorRegistry, metrics: GatewayMetrics) -> None:
    metrics.accepted(3, prompt_tokens=1)
    metrics.ended(FinishReason.ABORT, 1.0, ())
    metrics.failed("worker_lost")
    metrics.failed("deadline_exceeded", [PhaseTime("queue", 0.5), PhaseTime("prefill", 0.25)])
    assert sample(registry, "twinflow:requests_in_flight") == 0
    assert sample(registry, "vllm:request_success_total", finished_reason="abort") == 1
    assert sample(registry, "twinflow:request_failures_total", code="worker_lost") == 1
    assert sample(registry, "vllm:e2e_request_latency_seconds_count") == 0
    assert sample(registry, "vllm:request_queue_time_seconds_count") == 1
    assert sample(registry, "vllm:request_queue_time_seconds_sum") == 0.5
    assert sample(registry, "vllm:request_prefill_time_seconds_sum") == 0.25


def test_rejections_have_their_reason(registry: CollectorRegistry, metrics: GatewayMetrics) -> None:
    metrics.rejected(Overloaded("full"))
    reason = {"reason": "rate_limit_exceeded"}
    assert sample(registry, "vllm:admission_rejections_total", **reason) == 1
    assert sample(registry, "twinflow:requests_accepted_total") == 0


def test_workers_report_themselves(registry: CollectorRegistry, metrics: GatewayMetrics) -> None:
    stats = WorkerStats(
        num_running=3,
        num_waiting=4,
        free_blocks=25,
        total_blocks=100,
        prefix_queries=50,
        prefix_hits=20,
        preemptions=2,
        handoff_bytes=1 << 40,
        handoff_seconds=1.5,
        digests_refused=1,
    )
    metrics.observe_worker("decode-0", "decode", stats)
    metrics.observe_worker("prefill-0", "prefill", WorkerStats())
    labels = {"worker": "decode-0", "role": "decode"}
    for name, value in {
        "vllm:num_requests_running": 3,
        "vllm:num_requests_waiting": 4,
        "vllm:kv_cache_usage_perc": 0.75,
        "vllm:prefix_cache_queries_total": 50,
        "vllm:prefix_cache_hits_total": 20,
        "vllm:num_preemptions_total": 2,
        "twinflow:handoff_bytes_total": 1 << 40,
        "twinflow:handoff_seconds_total": 1.5,
        "twinflow:handoff_digests_refused_total": 1,
    }.items():
        assert sample(registry, name, **labels) == value
    empty = {"worker": "prefill-0", "role": "prefill"}
    assert sample(registry, "vllm:kv_cache_usage_perc", **empty) == 0


def test_traffic_of_experts_is_reported_by_layer(
    registry: CollectorRegistry, metrics: GatewayMetrics
) -> None:
    layers = [
        ExpertLayerStats(layer=layer, steps=2, distinct=9 + layer, loaded_bytes=1 << 40)
        for layer in (1, 2)
    ]
    metrics.observe_worker("w", "mixed", WorkerStats(expert_layers=layers))
    labels = {"worker": "w", "role": "mixed", "layer": "2"}
    assert sample(registry, "twinflow:expert_steps_total", **labels) == 2
    assert sample(registry, "twinflow:experts_needed_total", **labels) == 11
    assert sample(registry, "twinflow:expert_bytes_loaded_total", **labels) == 1 << 40
    assert sample(registry, "twinflow:expert_steps_total", **(labels | {"layer": "0"})) is None


def test_speculation_is_reported_under_the_names_of_vllm(
    registry: CollectorRegistry, metrics: GatewayMetrics
) -> None:
    account = SpeculationStats(
        drafts=9,
        draft_tokens=27,
        accepted_tokens=8,
        accepted_at=[6, 2],
        goodput=GoodputStats(speculating_steps=4, silent_steps=3, probe_steps=2),
        draft_kv=DraftKVStats(handed_over=5, failed=1, rebuilt=7),
        drafter_failed=True,
    )
    metrics.observe_worker("w", "decode", WorkerStats(speculation=account))
    labels = {"worker": "w", "role": "decode"}
    for name, value in (("drafts", 9), ("draft_tokens", 27), ("accepted_tokens", 8)):
        assert sample(registry, f"vllm:spec_decode_num_{name}_total", **labels) == value
    per_pos = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    assert [sample(registry, per_pos, **labels, position=p) for p in "012"] == [6, 2, None]
    assert sample(registry, "twinflow:drafter_failed", **labels) == 1
    for choice, steps in (("speculate", 4), ("none", 3), ("probe", 2)):
        steps_total = "twinflow:spec_decode_steps_total"
        assert sample(registry, steps_total, **labels, choice=choice) == steps
    for outcome, count in (("handed_over", 5), ("failed", 1), ("rebuilt", 7)):
        arrivals = "twinflow:draft_kv_arrivals_total"
        assert sample(registry, arrivals, **labels, outcome=outcome) == count


def test_a_worker_that_leaves_or_changes_its_role(
    registry: CollectorRegistry, metrics: GatewayMetrics
) -> None:
    name = "vllm:num_requests_running"
    metrics.observe_worker("w", "prefill", WorkerStats(num_running=1))
    metrics.observe_worker("w", "mixed", WorkerStats(num_running=2))
    assert sample(registry, name, worker="w", role="prefill") is None
    assert sample(registry, name, worker="w", role="mixed") == 2
    metrics.forget_worker("w")
    metrics.forget_worker("unknown")
    assert sample(registry, name, worker="w", role="mixed") is None


def test_of_a_lost_worker_the_load_is_unknown_and_the_counters_stay(
    registry: CollectorRegistry, metrics: GatewayMetrics
) -> None:
    def found() -> list[float | None]:
        names = ("twinflow:worker_up", "vllm:num_requests_running", "twinflow:worker_steps_total")
        return [sample(registry, name, worker="w", role="mixed") for name in names]

    stats = WorkerStats(num_running=2, steps=7)
    metrics.observe_worker("w", "mixed", stats)
    assert found() == [1, 2, 7]
    metrics.lose_worker("w")
    metrics.lose_worker("unknown")
    assert found() == [0, None, 7]
    metrics.forget_worker("w")
    assert found() == [0, None, None]
    metrics.observe_worker("w", "mixed", stats)
    assert found() == [1, 2, 7]


def test_the_exposition_parses_and_names_are_unique(
    registry: CollectorRegistry, metrics: GatewayMetrics
) -> None:
    metrics.observe_worker('w"\n\\', "decode", WorkerStats())
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert all(name.startswith(("vllm:", "twinflow:")) for name in names)
    assert all(family.documentation for family in families)
