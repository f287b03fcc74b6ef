"""Bodies that are no JSON document, or not the right kind (catalogue rows A1 to A9, A12)."""

import json

import pytest
from tests.support.http_gateway import (
    HttpGateway,
    assert_openai_error,
    chat_body,
    raw_post,
    status_of,
)

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def with_field(field: str, raw: str) -> bytes:
    """A good body with one more field, given as raw JSON."""
    return json.dumps(chat_body()).encode()[:-1] + f', "{field}": {raw}}}'.encode()


BAD = {
    "A1-empty": b"",
    "A1-blank": b" \n",
    "A2-not-json": b"hello",
    "A2-truncated": b'{"model": "tiny", "mess',
    "A2-trailing": json.dumps(chat_body()).encode() + b" x",
    "A2-two-documents": json.dumps(chat_body()).encode() * 2,
    "A2-invalid-utf8": b'{"model": "\xff"}',
    "A3-list": b"[]",
    "A3-string": b'"hi"',
    "A3-number": b"1",
    "A3-null": b"null",
    "A3-true": b"true",
    "A4-lists": b"[" * 100_000,
    "A4-objects": b'{"a":' * 100_000,
    "A4-in-a-field": with_field("user", "[" * 100_000 + "]" * 100_000),
    "A5-5000-digits": with_field("max_tokens", "1" * 5000),
    "A5-300-digits": with_field("max_tokens", "1" * 300),
    "A6-nan": with_field("temperature", "NaN"),
    "A6-infinity": with_field("temperature", "Infinity"),
    "A6-minus-infinity": with_field("presence_penalty", "-Infinity"),
    "A6-overflow": with_field("temperature", "1e400"),
    "A6-overflow-integer": with_field("temperature", "1" + "0" * 400),
    "A6-in-unknown-field": with_field("whatever", "[[NaN]]"),
    "A7-duplicate-key": with_field("model", '"tiny"'),
    "A7-duplicate-key-inside": with_field("metadata", '{"a": "1", "a": "2"}'),
    "A8-content": json.dumps(chat_body("\ud800")).encode(),
    "A8-low-half": json.dumps(chat_body("a\udc00b")).encode(),
    "A8-stop": with_field("stop", r'["\ud800"]'),
    "A8-user": with_field("user", r'"\uD83D"'),
    "A8-key": with_field("metadata", r'{"\ud800": "x"}'),
    "A8-model": json.dumps(chat_body(model="\udfff")).encode(),
    "A12-utf16": json.dumps(chat_body()).encode("utf-16"),
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_bad_document_is_the_callers_fault(gateway: HttpGateway, body: bytes) -> None:
    response = gateway.request("POST", CHAT, content=body, headers=JSON)
    assert_openai_error(response, 400)
    assert not gateway.backend.live


def test_a1_no_content_length(gateway: HttpGateway) -> None:
    head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    response = gateway.exchange(f"{head}Content-Type: application/json\r\n\r\n".encode())
    assert status_of(response) == 400
    assert b"body is empty" in response


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("a\x00b", id="A9-nul"),
        pytest.param("\u202eabc", id="A9-right-to-left"),
        pytest.param("a\u200b\u2060b", id="A9-zero-width"),
        pytest.param("👩🏽‍🚀", id="A9-emoji"),
        pytest.param("e\u0301 é", id="A9-nfd-and-nfc"),
        pytest.param('</script>"\\', id="A9-markup"),
    ],
)
def test_unusual_text_is_served_as_it_is(gateway: HttpGateway, content: str) -> None:
    for escaped in (True, False):
        body = json.dumps(chat_body(content, max_tokens=1), ensure_ascii=escaped).encode()
        response = gateway.request("POST", CHAT, content=body, headers=JSON)
        assert response.status_code == 200
        assert content.encode() in bytes(gateway.backend.specs[-1].prompt_token_ids)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        pytest.param("text/plain", 415, id="A12-text"),
        pytest.param("application/x-www-form-urlencoded", 415, id="A12-form"),
        pytest.param("", 415, id="A12-empty"),
        pytest.param("application/json; charset=utf-16", 415, id="A12-charset"),
        pytest.param("application/jsonx", 415, id="A12-similar"),
        pytest.param("Application/JSON; charset=UTF-8", 200, id="A12-good"),
        pytest.param('application/json; charset="utf-8"; x=y', 200, id="A12-quoted"),
    ],
)
def test_media_type(gateway: HttpGateway, content_type: str, status: int) -> None:
    body = json.dumps(chat_body(max_tokens=1)).encode()
    headers = {"content-type": content_type}
    response = gateway.request("POST", CHAT, content=body, headers=headers)
    if status == 200:
        assert response.status_code == 200
    else:
        assert_openai_error(response, status, "unsupported_media_type")


def test_a12_missing_content_type(gateway: HttpGateway) -> None:
    response = gateway.request("POST", CHAT, content=json.dumps(chat_body()).encode())
    assert_openai_error(response, 415, "unsupported_media_type")


def test_a12_byte_order_mark_is_no_fault(gateway: HttpGateway) -> None:
    body = json.dumps(chat_body(max_tokens=1)).encode("utf-8-sig")
    assert status_of(gateway.exchange(raw_post(CHAT, body))) == 200
