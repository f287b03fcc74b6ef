"""Who may call what (catalogue rows A36, A37) and what the status routes tell."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.support.http_gateway import (
    CONFIG,
    HttpGateway,
    assert_openai_error,
    chat_body,
    http_gateway,
    raw_post,
    read_all,
    status_of,
)

from twinflow.cluster.gateway.backend import Readiness
from twinflow.protos.errors import Unavailable

KEY = "sk-first"
GOOD = {"authorization": f"Bearer {KEY}"}
CHAT = "/v1/chat/completions"
ROUTES = [
    ("POST", CHAT, 400),
    ("POST", "/v1/completions", 400),
    ("POST", "/tokenize", 400),
    ("POST", "/detokenize", 400),
    ("GET", "/v1/models", 200),
    ("GET", "/v1/models/tiny", 200),
    ("GET", "/version", 200),
    ("GET", "/metrics", 200),
    ("GET", "/openapi.json", 200),
    ("GET", "/docs", 404),
    ("GET", "/", 404),
    ("GET", "/v1", 404),
    ("GET", CHAT, 405),
    ("HEAD", "/v1/models", 405),
    ("OPTIONS", CHAT, 405),
    ("TRACE", CHAT, 405),
    ("PUT", CHAT, 405),
    ("DELETE", "/v1/models/tiny", 405),
    ("PATCH", "/metrics", 405),
]
OPEN = ["/health", "/ready", "/live"]


@pytest.fixture(scope="module")
def locked() -> Iterator[HttpGateway]:
    with http_gateway(keys=[KEY, "sk-second"]) as running:
        yield running


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="A36-none"),
        pytest.param([("Authorization", "Bearer sk-wrong")], id="A36-wrong"),
        pytest.param([("Authorization", "Bearer sk-firs")], id="A36-prefix"),
        pytest.param([("Authorization", "Bearer ")], id="A36-empty"),
        pytest.param([("Authorization", "")], id="A36-blank"),
        pytest.param([("Authorization", f"Basic {KEY}")], id="A36-basic"),
        pytest.param([("Authorization", f"bearer {KEY}")], id="A36-lower-case-scheme"),
        pytest.param([("Authorization", KEY)], id="A36-no-scheme"),
        pytest.param([("Authorization", f"Bearer {KEY}")] * 2, id="A36-two-headers"),
        pytest.param([("Authorization", "Bearer " + "x" * 10_000)], id="A36-long"),
        pytest.param([("Authorization", "Bearer sk-first\u00e9")], id="A36-latin1"),
        pytest.param([("X-Api-Key", KEY)], id="A36-other-header"),
    ],
)
def test_stranger_is_refused(locked: HttpGateway, headers: list[tuple[str, str]]) -> None:
    lines = [f"{name}: {value}" for name, value in headers]
    raw = raw_post(f"{CHAT}?api_key={KEY}", json.dumps(chat_body()).encode())
    head, _, body = raw.partition(b"\r\n\r\n")
    extra = "".join(f"\r\n{line}" for line in lines).encode("latin-1")
    response = locked.exchange(head + extra + b"\r\n\r\n" + body)
    assert status_of(response) == 401
    assert b"www-authenticate: Bearer" in response
    assert b"invalid_api_key" in response
    assert KEY.encode() not in response


def test_a36_refusal_comes_before_the_body(locked: HttpGateway) -> None:
    with locked.connect() as connection:
        head = raw_post(CHAT, b"").replace(b"Content-Length: 0", b"Content-Length: 1000000")
        connection.sendall(head)
        assert status_of(read_all(connection)) == 401


@pytest.mark.parametrize("key", [KEY, "sk-second"])
def test_every_key_opens_the_door(locked: HttpGateway, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    assert locked.post(CHAT, chat_body(max_tokens=1), headers=headers).status_code == 200
    key_id = locked.backend.specs[-1].api_key_id
    assert key_id and key not in key_id


def test_white_space_round_a_header_is_not_part_of_it(locked: HttpGateway) -> None:
    raw = raw_post(CHAT, json.dumps(chat_body()).encode(), f"Authorization: \t Bearer {KEY} \t")
    assert status_of(locked.exchange(raw)) == 200


def test_key_ids_differ(locked: HttpGateway) -> None:
    for key in (KEY, "sk-second"):
        headers = {"authorization": f"Bearer {key}"}
        locked.post(CHAT, chat_body(max_tokens=1), headers=headers)
    first, second = (spec.api_key_id for spec in locked.backend.specs[-2:])
    assert first != second


@pytest.mark.parametrize(("method", "path", "status"), ROUTES)
def test_a37_route(locked: HttpGateway, method: str, path: str, status: int) -> None:
    refused = locked.request(method, path)
    known = locked.request(method, path, headers=GOOD)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    if path.startswith(("/v1/", "/tok", "/detok")) and status == 400:
        status = 415  # the route is reached, and misses its body
    assert known.status_code == status
    if status == 405:
        assert known.headers["allow"] == ("POST" if path == CHAT else "GET")
    if status >= 400 and method != "HEAD":
        assert_openai_error(known, status)


@pytest.mark.parametrize("path", OPEN)
def test_a37_health_needs_no_key(locked: HttpGateway, path: str) -> None:
    assert locked.get(path).status_code == 200
    assert locked.request("POST", path).status_code == 405
    assert locked.get(path + "/").status_code == 401


def test_a38_odd_paths_open_no_door(locked: HttpGateway) -> None:
    targets = ["//health/../v1/models", "/health/../v1/models", "/health%2f..%2fv1/models"]
    targets += [
        "/v1/../health",
        "http://x/v1/models",
        "/metrics?/health",
        "/metrics#/health",
        "/HEALTH",
    ]
    for target in targets:
        raw = f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        assert status_of(locked.exchange(raw)) == 401, target


def test_a48_starting_or_draining() -> None:
    with http_gateway() as gateway:
        gateway.backend.refusal = Unavailable("The server is starting.", retry_after_s=2.5)
        gateway.backend.ready = Readiness(ready=False, reason="no decode worker")
        for stream in (False, True):
            response = gateway.post(CHAT, chat_body(stream=stream))
            assert_openai_error(response, 503, "service_unavailable")
            assert response.headers["retry-after"] == "3"
            assert response.json()["error"]["message"] == "The server is starting."
        ready = gateway.get("/ready")
        assert ready.status_code == 503
        assert ready.headers["retry-after"] == "1"
        assert (ready.json()["ready"], ready.json()["reason"]) == (False, "no decode worker")
        assert gateway.get("/health").status_code == 200
        assert gateway.get("/live").status_code == 200
        assert gateway.metric("vllm:admission_rejections_total", reason="service_unavailable") == 2
        gateway.backend.refusal = None
        assert gateway.post(CHAT, chat_body()).status_code == 200


@pytest.mark.parametrize(
    ("ready", "query", "status"),
    [
        (Readiness(True), "", 200),
        (Readiness(True), "?pairs=any", 200),
        (Readiness(False, "decode-1 is gone", degraded=True), "", 503),
        (Readiness(False, "decode-1 is gone", degraded=True), "?pairs=all", 503),
        (Readiness(False, "decode-1 is gone", degraded=True), "?pairs=any", 200),
        (Readiness(False, "nobody is there"), "?pairs=any", 503),
    ],
)
def test_a_probe_may_settle_for_any_pair(ready: Readiness, query: str, status: int) -> None:
    with http_gateway() as gateway:
        gateway.backend.ready = ready
        response = gateway.get(f"/ready{query}")
        assert response.status_code == status
        assert response.json()["degraded"] is ready.degraded
        assert_openai_error(gateway.get("/ready?pairs=most"), 400, "invalid_request", "pairs")


def test_silence_is_not_readiness() -> None:
    with http_gateway(config=replace(CONFIG, readiness_timeout_s=0.05)) as gateway:
        gateway.backend.readiness_delay_s = 30.0
        response = gateway.get("/ready")
        assert response.status_code == 503
        assert "0.05 s" in response.json()["reason"]


def test_health_fails_with_the_gateway() -> None:
    with http_gateway() as gateway:
        gateway.backend.is_alive = False
        assert gateway.get("/health").status_code == 503
        assert gateway.get("/live").status_code == 503


def test_models(gateway: HttpGateway) -> None:
    models = gateway.get("/v1/models").json()
    assert models["object"] == "list"
    assert [card["id"] for card in models["data"]] == ["tiny", "tiny-alias"]
    card = gateway.get("/v1/models/tiny").json()
    assert card == models["data"][0]
    assert card["root"] == "/models/tiny"
    assert card["max_model_len"] == 256
    assert (card["object"], card["owned_by"]) == ("model", "twinflow")
    for name in ("other", "../tiny", "x" * 1000):
        assert_openai_error(gateway.get(f"/v1/models/{name}"), 404)


def test_tokenize_and_back(gateway: HttpGateway) -> None:
    text = gateway.post("/tokenize", {"prompt": "hé", "return_token_strs": True}).json()
    assert text == {
        "count": 3,
        "max_model_len": 256,
        "tokens": [104, 195, 169],
        "token_strs": ["h", "\\xc3", "\\xa9"],
    }
    chat = gateway.post("/tokenize", {"model": "tiny", "messages": [
        {"role": "user", "content": "hi"}], "add_generation_prompt": False}).json()  # fmt: skip
    assert bytes(chat["tokens"]) == b"user: hi\n"
    assert gateway.post("/detokenize", {"tokens": text["tokens"]}).json() == {"prompt": "hé"}
    assert gateway.post("/tokenize", {"prompt": ""}).json()["tokens"] == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {}, 400),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400),
        ("/tokenize", {"prompt": 5}, 400),
        ("/tokenize", {"messages": []}, 400),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, 400),
        ("/detokenize", {}, 400),
        ("/detokenize", {"tokens": [258]}, 400),
        ("/detokenize", {"tokens": [-1]}, 400),
        ("/detokenize", {"tokens": "a"}, 400),
        ("/detokenize", {"tokens": [True]}, 400),
        ("/detokenize", {"tokens": [10**400]}, 400),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404),
    ],
)
def test_bad_tokenization(
    gateway: HttpGateway, path: str, body: dict[str, object], status: int
) -> None:
    assert_openai_error(gateway.post(path, body), status)


def test_description_names_every_route(gateway: HttpGateway) -> None:
    described = gateway.get("/openapi.json").json()["paths"]
    assert {CHAT, "/v1/completions", "/tokenize", "/detokenize", "/v1/models"} <= set(described)
    schema = described[CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "temperature", "min_p", "return_timeline"} <= set(schema["properties"])
