"""KV that becomes final layer group by layer group is sent once, and all of it."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import NUM_LAYERS, EngineSpec, create_engine, create_request
from tests.support.schedulers import LinearTimes

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.links.manifest import TransferLedger, TransferManifest
from twinflow.runtime.kv_progress import KVProgress
from twinflow.workers.handoff.units import UnitPlanner

BLOCK_SIZE = 4
LAYOUT = KVLayout.of_heads(
    num_layers=NUM_LAYERS, kv_heads=1, head_dim=4, block_size=BLOCK_SIZE, dtype="float32"
)


@settings(max_examples=100, deadline=None)
@given(
    prompt=st.integers(1, 60),
    cached=st.integers(0, 40),
    budget=st.integers(4, 40),
    objective=st.floats(0.1, 20.0),
    decodes=st.booleans(),
)
def test_every_cell_is_sent_once(
    prompt: int, cached: int, budget: int, objective: float, decodes: bool
) -> None:
    heard: list[KVProgress] = []
    spec = EngineSpec(
        scheduler="layered",
        tbt_objective=objective,
        times=LinearTimes(step=0.0, layer=0.0, row=1.0),
        max_num_seqs=3,
        max_num_batched_tokens=budget,
    )

    def hear(progress: KVProgress) -> None:
        executor.check_final(progress)
        heard.append(progress)

    engine, executor = create_engine(spec, on_kv=hear)
    tokens = [(7 * index) % 900 for index in range(prompt)]
    if cached:
        engine.add_request(create_request(tokens[:cached] or [1], max_tokens=1))
        while engine.runnable:
            engine.step()
    if decodes:
        engine.add_request(create_request(3, max_tokens=100))
        engine.step()
    held = create_request(tokens, hold=True)
    engine.add_request(held)
    for _ in range(200):
        engine.step()
        if held.output_token_ids:
            break
    num_blocks = -(-prompt // BLOCK_SIZE)
    manifest = TransferManifest("t", LAYOUT, 0, num_blocks, layers_per_unit=2)
    planner, ledger = UnitPlanner(manifest, prompt), TransferLedger(manifest)
    for progress in heard:
        for unit in planner.advance(progress):
            manifest.check_unit(unit, manifest.message_bytes(unit), unit.num_blocks)
            ledger.admit(unit)
            ledger.record(unit.index)
    assert ledger.complete
    engine.release(held.request_id)
    engine.check_integrity()
