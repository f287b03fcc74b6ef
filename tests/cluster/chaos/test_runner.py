"""What a runner makes of the names of workers."""

import pytest

from twinflow.cluster.chaos.runner import has_gaps


@pytest.mark.parametrize(
    ("names", "gaps"),
    [
        ((), False),
        (("gateway-0", "prefill-0", "decode-0"), False),
        (("prefill-0", "decode-1", "decode-0", "decode-1-rank1", "decode-0-rank1"), False),
        (("prefill-0", "decode-1"), True),
        (("prefill-2", "prefill-1", "decode-0"), True),
    ],
)
def test_a_successor_has_the_name_of_the_dead_unless_a_lower_one_is_free(
    names: tuple[str, ...], gaps: bool
) -> None:
    assert has_gaps(names) is gaps
