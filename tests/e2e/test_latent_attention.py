"""A trained model with latent attention is served: exactly, unless an operator insists on tpla."""

import pytest
from tests.support.continuations import Continuation, continue_served, continue_with_transformers
from tests.support.deployments import serving
from tests.support.nano_models import NANO

PROMPTS = (
    "class Stack:\n    def __init__(self):\n",
    "import os\nimport sys\n\ndef main(",
    'def read_lines(path):\n    """Return the lines of a file.',
    "class ParserTest(unittest.TestCase):\n\n    def test_parse(self):\n        self.assert",
)
MAX_TOKENS = 24
FLAGS = (
    *("--launcher", "local", "--dtype", "float32", "--threads-per-worker", "1"),
    *("--max-model-len", "128", "--num-kv-blocks", "64", "--max-num-seqs", "8"),
)
POOLS = ("--prefill", "1", "--decode", "1", "--decode-tensor-parallel-size", "2")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def expected() -> list[Continuation]:
    """What follows the prompts with exact attention."""
    return continue_with_transformers(NANO, PROMPTS, MAX_TOKENS)


@pytest.mark.parametrize(
    ("flags", "processes"),
    [
        ((*POOLS, "--mla-parallel", "dcp", "--mla-shards", "2"), 3),
        (("--mixed", "1"), 1),
    ],
    ids=["pools, dcp", "mixed"],
)
def test_tokens_are_those_of_transformers(
    expected: list[Continuation], flags: tuple[str, ...], processes: int
) -> None:
    with serving(NANO, *FLAGS, *flags) as deployment:
        assert len(deployment.workers) == processes
        assert continue_served(deployment, PROMPTS, MAX_TOKENS) == expected
        metrics = deployment.wait_idle()
        assert "approximates attention" not in deployment.log
    assert metrics.finished == len(PROMPTS)
    assert metrics.value("twinflow:handoffs_failed_total") == 0


def test_tpla_says_what_it_costs_and_depends_on_no_company(expected: list[Continuation]) -> None:
    tpla = ("--mla-parallel", "tpla", "--mla-shards", "2")
    said = "tpla approximates attention: joint-exact1 with 2 shards changes the loss"
    with serving(NANO, *FLAGS, *POOLS, *tpla) as deployment:
        assert said in deployment.log
        together = continue_served(deployment, PROMPTS, MAX_TOKENS)
        for prompt, found in zip(PROMPTS, together, strict=True):
            assert continue_served(deployment, [prompt], MAX_TOKENS) == [found]
        metrics = deployment.wait_idle()
    for found, exact in zip(together, expected, strict=True):
        assert found.prompt_token_ids == exact.prompt_token_ids
        assert found.token_ids[0] == exact.token_ids[0], "prompts are computed exactly"
    assert metrics.finished == 2 * len(PROMPTS)
    assert any(name.startswith("twinflow:tpla_") for name in metrics.page.samples)
