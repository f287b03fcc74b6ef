"""A deployment over the nodes of a Ray cluster that is there already."""

from pathlib import Path

import pytest
from tests.support.deployments import serving
from tests.support.ray_nodes import ray_nodes, token_environment

from twinflow import LLM, Client, SamplingParams

PROMPT = "Once upon a time, in a village by the sea,"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_pools_on_nodes_of_their_own(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = token_environment()
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    pools = [{"twinflow_prefill": 1}, {"twinflow_decode": 1}]
    with (
        ray_nodes(tmp_path_factory.mktemp("r"), environ, pools) as address,
        serving(tiny_model, "--address", address, "--device", "cpu") as deployment,
        Client(deployment.grpc_target) as client,
    ):
        served = client.generate(PROMPT, seed=7, max_tokens=16)
        scrape = deployment.wait_idle()
    assert scrape.value("twinflow:handoffs_completed_total", role="decode") >= 1
    alone = LLM(tiny_model, dtype="float32", max_model_len=256, kv_cache_memory=64 << 20)
    (expected,) = alone.generate(PROMPT, SamplingParams(seed=7, max_tokens=16), use_tqdm=False)
    assert served.outputs[0].text == expected.outputs[0].text
