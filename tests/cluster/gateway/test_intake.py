"""A bound on what is not admitted yet."""

import pytest

from twinflow.cluster.gateway.intake import Intake, IntakeLimits
from twinflow.protos.errors import Overloaded


@pytest.fixture
def refusals() -> list[Overloaded]:
    return []


@pytest.fixture
def intake(refusals: list[Overloaded]) -> Intake:
    return Intake(IntakeLimits(max_requests=2, max_size=10), "bytes", refusals.append)


def test_shares_are_given_back_as_they_were_taken(intake: Intake) -> None:
    with intake.share(3) as one, intake.share() as other:
        one.take(2)
        other.take(5)
        assert (intake.num_requests, intake.size) == (2, 10)
    assert (intake.num_requests, intake.size) == (0, 0)


def test_too_many_requests(intake: Intake, refusals: list[Overloaded]) -> None:
    with intake.share(), intake.share():
        with pytest.raises(Overloaded, match=r"2 requests"), intake.share():
            raise AssertionError("there was room")
        assert intake.num_requests == 2
    assert [error.retry_after_s for error in refusals] == [1.0]


def test_too_much_at_once_and_too_much_by_and_by(
    intake: Intake, refusals: list[Overloaded]
) -> None:
    with pytest.raises(Overloaded, match=r"10 bytes"), intake.share(11):
        raise AssertionError("there was room")
    with intake.share(6):
        with pytest.raises(Overloaded), intake.share(4) as share:
            share.take(1)
        assert intake.size == 6
    assert (intake.num_requests, intake.size, len(refusals)) == (0, 0, 2)


def test_an_error_gives_everything_back(intake: Intake) -> None:
    with pytest.raises(ZeroDivisionError), intake.share(10):
        raise ZeroDivisionError
    assert (intake.num_requests, intake.size) == (0, 0)
