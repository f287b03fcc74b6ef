"""API keys."""

import pytest

from twinflow.cluster.gateway.auth import Authenticator
from twinflow.protos.errors import Unauthenticated


def test_without_keys_everybody_is_let_in() -> None:
    assert Authenticator().check(None) == ""
    assert Authenticator().check("Basic whatever") == ""


def test_any_of_several_keys_is_let_in_under_an_id_of_its_own() -> None:
    authenticator = Authenticator(["old", "new"])
    ids = [authenticator.check(f"Bearer {key}") for key in ("old", "new", "old")]
    assert ids[0] == ids[2] != ids[1]
    assert all(len(key_id) == 16 and "old" not in key_id for key_id in ids)


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer ke", "Bearer key ", "bearer key",
     "Basic key", "key", "Bearer  key", "Bearer " + "k" * 10_000, "Bearer \xe9", "Bearer \udcff"],
)  # fmt: skip
def test_everybody_else_is_refused(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as refused:
        Authenticator(["key"]).check(header)
    assert "key'" not in str(refused.value)


def test_an_empty_key_would_let_everybody_in() -> None:
    with pytest.raises(ValueError, match="empty"):
        Authenticator(["key", ""])
