"""Rows B15 to B17 and B20: what load balancers, grpcurl and old clients rely on."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tests.support.fake_backend import FakeBackend
from tests.support.grpc_doors import RunningDoor, call, eventually, failing, running_door

from twinflow.cluster.gateway.backend import Readiness
from twinflow.protos.errors import Overloaded
from twinflow.protos.twinflow.v1 import inference_pb2 as pb

CHECK = "/grpc.health.v1.Health/Check"
INFERENCE = "twinflow.v1.Inference"
PROTOS = Path(__file__).resolve().parents[3] / "protos"

Status = health_pb2.HealthCheckResponse


def watch(channel: grpc.aio.Channel, service: str = "") -> Any:
    method = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        health_pb2.HealthCheckRequest.SerializeToString,
        Status.FromString,
    )
    return method(health_pb2.HealthCheckRequest(service=service), timeout=20)


async def check(channel: grpc.aio.Channel, service: str = "") -> Any:
    request = health_pb2.HealthCheckRequest(service=service)
    return Status.FromString(await call(channel, CHECK, request)).status


@pytest.mark.parametrize("service", ["", INFERENCE])
async def test_b15_check_says_what_the_backend_says(service: str) -> None:
    backend = FakeBackend()
    async with running_door(backend) as door, door.channel() as channel:
        assert await check(channel, service) == Status.SERVING
        backend.is_alive = False
        await becomes(channel, service, Status.NOT_SERVING)
        backend.is_alive = True
        await becomes(channel, service, Status.SERVING)


async def becomes(channel: grpc.aio.Channel, service: str, status: Any) -> None:
    async with asyncio.timeout(5):
        while await check(channel, service) != status:
            await asyncio.sleep(0.02)


async def test_b15_a_backend_that_cannot_even_say_is_not_serving() -> None:
    class Mute(FakeBackend):
        answer_after_s = 0.0

        async def readiness(self) -> Readiness:
            await asyncio.sleep(self.answer_after_s)
            if not self.answer_after_s:
                raise RuntimeError("broken")
            return await super().readiness()

    backend = Mute()
    async with running_door(backend) as door, door.channel() as channel:
        assert await check(channel) == Status.NOT_SERVING
        backend.answer_after_s = 0.001
        await becomes(channel, "", Status.SERVING)
        backend.answer_after_s = 60.0
        await becomes(channel, "", Status.NOT_SERVING)


async def test_b15_unknown_services() -> None:
    async with running_door() as door, door.channel() as channel:
        with failing() as failure:
            await check(channel, "twinflow.v1.Nonsense")
        assert failure.code is grpc.StatusCode.NOT_FOUND
        watching = watch(channel, "twinflow.v1.Nonsense")
        assert (await watching.read()).status == Status.SERVICE_UNKNOWN
        with pytest.raises(TimeoutError):  # it goes on: the service may appear
            async with asyncio.timeout(0.2):
                await watching.read()
        watching.cancel()


@pytest.mark.parametrize("service", ["", INFERENCE])
async def test_b16_watch_follows_the_backend_down_and_up(service: str) -> None:
    backend = FakeBackend()
    async with running_door(backend) as door, door.channel() as channel:
        watching = watch(channel, service)
        assert (await watching.read()).status == Status.SERVING
        backend.ready = Readiness(ready=False, reason="decode-0 is gone")
        assert (await watching.read()).status == Status.NOT_SERVING
        backend.ready = Readiness(ready=True)
        assert (await watching.read()).status == Status.SERVING
        watching.cancel()


async def test_the_server_as_a_whole_needs_every_pair_and_the_service_any() -> None:
    backend = FakeBackend()
    async with running_door(backend) as door, door.channel() as channel:
        backend.ready = Readiness(ready=False, reason="decode-1 is gone", degraded=True)
        await becomes(channel, "", Status.NOT_SERVING)
        assert await check(channel, INFERENCE) == Status.SERVING
        backend.ready = Readiness(ready=False, reason="nobody is there")
        await becomes(channel, INFERENCE, Status.NOT_SERVING)
        backend.ready = Readiness(ready=True)
        await becomes(channel, INFERENCE, Status.SERVING)
        assert await check(channel) == Status.SERVING


async def test_b16_watches_end_when_the_server_stops_and_hold_it_up_for_nothing() -> None:
    async with running_door() as door, door.channel() as channel:
        watching = [watch(channel) for _ in range(3)]
        for one in watching:
            assert (await one.read()).status == Status.SERVING
        async with asyncio.timeout(5):
            await door.door.stop(grace_s=60)
        for one in watching:
            assert (await one.read()).status == Status.NOT_SERVING
            with failing() as failure:
                await one.read()
            assert failure.code is grpc.StatusCode.UNAVAILABLE


async def test_b16_watches_are_bounded() -> None:
    async with running_door(max_health_checks=3) as door, door.channel() as channel:
        watching = [watch(channel) for _ in range(3)]
        for one in watching:
            await one.read()
        with failing() as failure:
            await check(channel)
        assert isinstance(failure.error, Overloaded)
        for one in watching:
            one.cancel()
        async with asyncio.timeout(5):
            while True:
                try:
                    assert await check(channel) == Status.SERVING
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.01)


async def grpcurl(
    door: RunningDoor, *words: str, data: str | None = None, key: str | None = None
) -> tuple[int, str]:
    """Run grpcurl; its status and output."""
    options = ["-plaintext", "-max-time", "20"]
    if data is not None:
        options += ["-d", data]
    if key is not None:
        options += ["-H", f"authorization: Bearer {key}"]
    process = await asyncio.create_subprocess_exec(
        "grpcurl",
        *options,
        door.target,
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


needs_grpcurl = pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is missing")


@needs_grpcurl
async def test_b17_grpcurl_lists_describes_and_calls() -> None:
    backend = FakeBackend()
    async with running_door(backend) as door:
        _, listed = await grpcurl(door, "list")
        assert {INFERENCE, "grpc.health.v1.Health"} <= set(listed.split())
        _, methods = await grpcurl(door, "list", INFERENCE)
        assert f"{INFERENCE}.GenerateStream" in methods.split()
        _, described = await grpcurl(door, "describe", "twinflow.v1.GenerationInput")
        assert "oneof prompt" in described
        request = {"input": {"model": "tiny", "text": "Hi", "stopping": {"maxTokens": 5}}}
        status, output = await grpcurl(door, f"{INFERENCE}/Generate", data=json.dumps(request))
        assert status == 0
        [completion] = json_format.Parse(output, pb.GenerateResponse()).completions
        assert len(completion.text) == 5
        assert completion.finish_reason == pb.FINISH_REASON_LENGTH
        status, output = await grpcurl(
            door, f"{INFERENCE}/GenerateStream", data=json.dumps(request)
        )
        assert status == 0 and '"complete"' in output
        status, output = await grpcurl(door, f"{INFERENCE}/Generate", data="{}")
        assert status != 0
        assert "InvalidArgument" in output and "twinflow" in output


@needs_grpcurl
async def test_b17_grpcurl_needs_the_key_and_works_with_it() -> None:
    async with running_door(keys=("right",)) as door:
        status, output = await grpcurl(door, "list")
        assert status != 0 and INFERENCE not in output
        status, output = await grpcurl(door, "list", key="right")
        assert status == 0 and INFERENCE in output.split()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_b17_both_versions_of_reflection_answer(version: str) -> None:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    asked = reflection_pb2.ServerReflectionRequest

    async def requests() -> Any:
        yield asked(list_services="").SerializeToString()
        yield asked(file_containing_symbol=INFERENCE).SerializeToString()
        yield asked(file_containing_symbol="no.such.Thing").SerializeToString()

    async with running_door() as door, door.channel() as channel:
        read = reflection_pb2.ServerReflectionResponse.FromString
        method: grpc.aio.StreamStreamMultiCallable[bytes, Any]
        method = channel.stream_stream(path, None, read)
        answers = [answer async for answer in method(requests(), timeout=20)]
    services = {service.name for service in answers[0].list_services_response.service}
    assert services == {
        INFERENCE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert answers[1].file_descriptor_response.file_descriptor_proto
    assert answers[2].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_b17_reflection_can_be_switched_off() -> None:
    async with running_door(reflection=False) as door, door.channel() as channel:
        for version in ("v1", "v1alpha"):
            with failing() as failure:
                path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
                await call(channel, path, b"")
            assert failure.code is grpc.StatusCode.UNIMPLEMENTED


needs_buf = pytest.mark.skipif(shutil.which("buf") is None, reason="buf is missing")


@needs_buf
def test_b20_the_protos_are_lint_free() -> None:
    result = subprocess.run(["buf", "lint"], cwd=PROTOS.parent, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout


@needs_buf
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("optional double top_p = 3;", "optional double nucleus = 3;"),
        ("optional double top_p = 3;", "optional float top_p = 3;"),
        ("  optional double min_p = 4;\n", ""),
        ("optional bool ignore_eos = 5;", "optional bool ignore_eos = 9;"),
        ("rpc Detokenize(DetokenizeRequest) returns (DetokenizeResponse);", ""),
    ],
    ids=["renamed", "retyped", "removed", "renumbered", "method removed"],
)
def test_b20_breaking_changes_are_found(tmp_path: Path, before: str, after: str) -> None:
    """What scripts run as `buf breaking` does find what would break an old client."""
    changed = tmp_path / "changed"
    for proto in PROTOS.rglob("*.proto"):
        target = changed / "protos" / proto.relative_to(PROTOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(proto.read_text())
    shutil.copy(PROTOS.parent / "buf.yaml", changed)
    assert breaking(changed) == 0
    inference = changed / "protos" / "twinflow" / "v1" / "inference.proto"
    assert before in inference.read_text()
    inference.write_text(inference.read_text().replace(before, after))
    assert breaking(changed) != 0


def breaking(changed: Path) -> int:
    words = ["buf", "breaking", "--against", str(PROTOS.parent)]
    return subprocess.run(words, cwd=changed, capture_output=True, check=False).returncode


async def test_nothing_is_left_of_calls_to_health_and_reflection() -> None:
    async with running_door() as door:
        async with door.channel() as channel:
            watching = watch(channel)
            await watching.read()
        await eventually(lambda: not door.door.calls)
        await eventually(lambda: _integral(door))


def _integral(door: RunningDoor) -> bool:
    try:
        door.door.check_integrity()
    except RuntimeError:
        return False
    return True
