"""`twinflow chaos`: what is refused before anything starts."""

import pytest
from tests.support.command_line import run_command


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--targets", "nobody"), "--targets 'nobody': choose from prefill, decode"),
        (("--actions", "tickle"), "--actions 'tickle': choose from kill"),
        (("--moments", "never"), "--moments 'never': choose from start-up"),
        (("--seeds", "many"), "--seeds 'many': must be a whole number"),
        (("--rate", "0"), "--rate '0': must be a number above 0"),
        (("--launcher", "ray"), "--launcher local"),
        (("--targets", "link", "--actions", "kill"), "no target, action and moment"),
        (("--seeds", "0"), "no target, action and moment"),
        (("--block-size", "3"), "--block-size"),
        (("--sedes", "3"), "did you mean --seeds?"),
    ],
)
def test_what_is_wrong_is_named(flags: tuple[str, ...], complaint: str) -> None:
    ran = run_command("chaos", "small", *flags)
    assert ran.status == 2
    assert complaint in ran.err


def test_what_cannot_be_hit_is_said() -> None:
    ran = run_command("chaos", "small", "--targets", "rank", "session")
    assert ran.status == 2
    assert "Left out: rank, because decode workers have one rank." in ran.out
    assert "Left out: session, because this is not a network that nobody else uses." in ran.out
