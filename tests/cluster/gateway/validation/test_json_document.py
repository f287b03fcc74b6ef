"""JSON, strictly: agrees with the standard library on what is JSON, and refuses the rest."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinflow.cluster.gateway.validation import parse_json
from twinflow.protos.errors import InvalidRequest

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(VALUES, st.booleans())
def test_every_document_survives(value: object, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@settings(deadline=None)
@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()[:-1]))
def test_everything_else_is_an_invalid_request(data: bytes) -> None:
    try:
        parse_json(data)
    except InvalidRequest as error:
        assert len(str(error)) < 200


@settings(deadline=None)
@given(st.text(), st.sampled_from(["\\ud800", "\\uDFFF", "\\udbff\\u0041", "\\udc00\\ud800"]))
def test_half_a_pair_is_refused_wherever_it_is(text: str, half: str) -> None:
    inside = json.dumps(text)[1:-1] + half
    for document in (
        f'"{inside}"',
        f'["{inside}"]',
        f'{{"{inside}": 1}}',
        f'[{{"a": "{inside}"}}]',
    ):
        with pytest.raises(InvalidRequest, match="surrogate"):
            parse_json(document.encode())


def test_escaped_backslashes_and_whole_pairs_are_no_halves() -> None:
    assert parse_json(rb'["\\ud800", "\ud83d\ude00"]') == ["\\ud800", "😀"]
