"""Green contexts on a CUDA device: sizes, results and overlap of the parts, tokens on two lanes."""

from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import write_checkpoint

from twinflow.parallel.partition.backends.base import Place
from twinflow.parallel.partition.backends.greenctx import GreenContexts
from twinflow.parallel.partition.control import Mode
from twinflow.protos.errors import ConfigError
from twinflow.runtime.cost.fit import fit_model
from twinflow.runtime.cost.measure import measure
from twinflow.runtime.cost.pair_fit import fit_pairs
from twinflow.runtime.engine_plan import EngineOptions
from twinflow.runtime.lanes.options import LaneOptions
from twinflow.runtime.llm import LLM
from twinflow.runtime.sampling_params import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def divided() -> GreenContexts:
    try:
        return GreenContexts(Place("cuda:0"))
    except ConfigError as error:
        pytest.skip(str(error))


def test_products_are_the_same_on_every_part(divided: GreenContexts) -> None:
    left = torch.randn(512, 512, device="cuda")
    expected = left @ left
    layouts = [divided.grid.layout(index) for index in range(len(divided.grid.splits))]
    for lane, whole in (
        (Mode.PREFILL, divided.grid.all_prefill),
        (Mode.DECODE, divided.grid.all_decode),
    ):
        for layout in (*layouts, whole):
            divided.enter(lane, layout)
            found = left @ left
            divided.settle(lane)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.cuda.set_stream(torch.cuda.default_stream())
    divided.close()


def test_steps_are_measured_on_parts_and_side_by_side(tmp_path: Path) -> None:
    options = EngineOptions(
        model=write_checkpoint(tmp_path / "model"),
        device="cuda",
        dtype="float32",
        max_num_seqs=256,
        kv_cache_memory=1 << 28,
    )
    found = measure(options, threads=0, seconds=0.1, progress=lambda part: None)
    assert len({each.share for each in found.fitting}) > 2
    assert found.pairs is not None, found.obstacle
    fit_pairs(fit_model(found.shape, found.fitting), found.pairs)


def test_tokens_on_two_lanes(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    prompts = [list(range(3, 3 + length)) for length in (5, 70, 130, 17, 40, 99)]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    settings = {"device": "cuda", "dtype": "float32", "max_num_batched_tokens": 32}
    found = []
    for backend in ("none", "greenctx"):
        llm = LLM(model, lanes=LaneOptions(backend=backend), **settings)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        found.append([output.outputs[0].token_ids for output in outputs])
    assert found[0] == found[1]
