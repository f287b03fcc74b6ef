"""A gateway before and after it meets the workers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.certificates import Authority
from tests.support.fake_worker import TOKEN, FakeWorker, running, until
from tests.support.served_models import write_tiny_model

from twinflow import AsyncClient
from twinflow.cluster.controller.gateway_link import GrpcGatewayLink
from twinflow.cluster.dispatch.roster import Duty
from twinflow.cluster.gateway.config import GatewayConfig
from twinflow.cluster.gateway.server import GatewayServer
from twinflow.protos.errors import ConfigError, Unavailable
from twinflow.protos.twinflow.internal.v1 import gateway_pb2
from twinflow.workers.mutual_tls import MutualTls

BODY: dict[str, Any] = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 2}
WORKERS = {"vocab_size": 400}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> GatewayConfig:
    return GatewayConfig(
        model=write_tiny_model(Path(tmp_path_factory.mktemp("models") / "tiny")),
        names=("tiny",),
        token=TOKEN,
        max_queued_requests=8,
        max_queued_tokens=1000,
        port=0,
        grpc_port=0,
    )


@asynccontextmanager
async def started(
    config: GatewayConfig,
) -> AsyncIterator[tuple[GatewayServer, httpx.AsyncClient, str]]:
    """A gateway with open doors that knows no workers: itself, its HTTP door, its gRPC door."""
    gateway = GatewayServer(config)
    try:
        doors = await gateway.start(lambda *_: None)
        url = f"http://{doors['http']}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
            yield gateway, http, doors["grpc"]
    finally:
        await gateway.stop(0.0)


async def health(target: str, service: str = "") -> bool:
    """What the health service says."""
    async with grpc.aio.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=30)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_until_it_knows_the_workers_it_refuses_and_lives(config: GatewayConfig) -> None:
    async with started(config) as (_, http, target):
        for path in ("/health", "/live", "/metrics", "/version"):
            assert (await http.get(path)).status_code == 200, path
        ready = await http.get("/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "the server is starting")
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        for path, body in (
            ("/v1/completions", BODY),
            ("/v1/completions", BODY | {"stream": True}),
            ("/v1/chat/completions", chat),
            ("/tokenize", {"prompt": "hi"}),
        ):
            refused = await http.post(path, json=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
            assert refused.json()["error"]["message"] == "The server is starting."
            assert refused.json()["error"]["code"] == "service_unavailable"
        assert (await http.get("/v1/models")).status_code == 503
        assert not await health(target)
        async with AsyncClient(target) as client:
            with pytest.raises(Unavailable, match="The server is starting"):
                await client.generate(token_ids=(5, 6, 7))


async def test_it_serves_once_it_knows_them(config: GatewayConfig) -> None:
    prefill = FakeWorker("prefill-0", "prefill", **WORKERS)
    decode = FakeWorker("decode-0", "decode", **WORKERS)
    async with started(config) as (gateway, http, target), running(prefill, decode) as addresses:
        await gateway.follow([Duty(where) for where in addresses])
        await until(lambda: len(gateway.dispatcher.available) == 2)
        ready = await http.get("/ready")
        assert (ready.status_code, ready.json()["pairs"]) == (200, ["prefill-0→decode-0: ok"])
        answer = await http.post("/v1/completions", json=BODY)
        assert answer.json()["usage"]["completion_tokens"] == 2
        (card,) = (await http.get("/v1/models")).json()["data"]
        assert (card["id"], card["max_model_len"]) == ("tiny", 256)
        while not await health(target):  # it asks again within a second
            pass


async def test_controller_gateway_and_workers_prove_themselves(
    config: GatewayConfig, tmp_path: Path
) -> None:
    """And do so with renewed certificates, too, after which nothing is left of the old ones."""
    directory = Authority().write(tmp_path / "tls")
    prefill = FakeWorker("prefill-0", "prefill", **WORKERS)
    decode = FakeWorker("decode-0", "decode", **WORKERS)
    tls = prefill.tls = decode.tls = MutualTls(directory)
    gateway = GatewayServer(msgspec.structs.replace(config, tls=directory))
    control = (await gateway.start(lambda *_: None))["control"]
    link, in_clear = GrpcGatewayLink(control, TOKEN, tls), GrpcGatewayLink(control, TOKEN)
    try:
        async with running(prefill, decode) as addresses:
            duties = [
                gateway_pb2.Duty(worker_id=at.worker_id, epoch=at.epoch, address=at.address)
                for at in addresses
            ]
            table = gateway_pb2.SyncRequest(table_version=1, duties=duties)
            with pytest.raises(Unavailable, match=f"the gateway at {control}: unavailable: "):
                await asyncio.to_thread(in_clear.sync, table, 30.0)
            await asyncio.to_thread(link.sync, table, 30.0)
            await until(lambda: len(gateway.dispatcher.available) == 2)
            Authority().write(directory)
            await decode.restart(epoch=1)  # the same life, over a new connection
            answer = await asyncio.to_thread(link.sync, table, 30.0)
            assert not answer.problem.message
            await until(lambda: len(gateway.dispatcher.available) == 2)
    finally:
        for each in (link, in_clear):
            each.close()
        await gateway.stop(0.0)


async def test_a_greedy_key_keeps_nobody_waiting(config: GatewayConfig) -> None:
    """While both have something waiting they get the same in tokens, however that is cut."""
    keys, count = ("greedy", "modest"), 20
    prompts = {"greedy": [5] * 16, "modest": [6] * 4}
    limits = {"max_queued_requests": 99, "max_key_queued_requests": count, "fair_tokens": 16}
    gateway_config = msgspec.structs.replace(config, api_keys=keys, **limits)
    worker, gate = FakeWorker("mixed-0", "mixed", **WORKERS), asyncio.Event()
    worker.behaviour.gate = gate

    async def ask(http: httpx.AsyncClient, key: str) -> httpx.Response:
        body = BODY | {"prompt": prompts[key], "max_tokens": 1}
        headers = {"authorization": f"Bearer {key}"}
        return await http.post("/v1/completions", json=body, headers=headers)

    async with started(gateway_config) as (gateway, http, _), running(worker) as (address,):
        await gateway.follow([Duty(address)])
        await until(lambda: gateway.dispatcher.available)
        asked = []
        for key in keys:
            asked += [asyncio.create_task(ask(http, key)) for _ in range(count)]
            await until(lambda: gateway.dispatcher.queue.num_requests == len(asked))  # noqa: B023
            refused = await ask(http, key)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert "Too much of this API key waits" in refused.text
        gate.set()
        answers = await asyncio.gather(*asked)
        gateway.dispatcher.check_integrity()
    assert {answer.status_code for answer in answers} == {200}
    sent = [list(submission.prompt_token_ids) for submission in worker.submissions]
    order = [key for prompt in sent for key in keys if prompt == prompts[key]]  # not the probes
    assert (order[0], order.count("greedy"), order.count("modest")) == ("greedy", count, count)
    served, price = dict.fromkeys(keys, 0), {key: len(prompts[key]) + 2 for key in keys}
    # The first one went before anybody else was there. The bound is that of the design.
    for key in order[1:]:
        served[key] += price[key]
        assert abs(served["greedy"] - served["modest"]) <= 2 * max(16, 2 * 4), order
        if served["modest"] == count * price["modest"]:
            break


async def test_workers_that_cannot_serve_together(config: GatewayConfig) -> None:
    one, other = FakeWorker("mixed-0"), FakeWorker("mixed-1", block_size=8)
    async with started(config) as (gateway, http, _), running(one, other) as addresses:
        with pytest.raises(ConfigError, match="block sizes"):
            await gateway.follow([Duty(where) for where in addresses])
        assert (await http.get("/ready")).status_code == 503


async def test_a_taken_port_is_named(config: GatewayConfig) -> None:
    async with started(config) as (_, http, _):
        taken = msgspec.structs.replace(config, port=http.base_url.port)
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{taken.port}"):
            async with started(taken):
                pass
