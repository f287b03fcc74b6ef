"""The figures that routers and metrics see."""

from tests.support.engines import EngineSpec, create_engine, create_request, run

from twinflow.runtime.layer_traffic import LayerTotals
from twinflow.runtime.snapshot import EngineSnapshot, take_snapshot


def test_an_engine_without_requests() -> None:
    engine, _ = create_engine(EngineSpec(num_blocks=10))
    assert take_snapshot(engine) == EngineSnapshot(free_blocks=9, total_blocks=9)


def test_blocks_are_those_of_all_ranks_that_share_them() -> None:
    engine, _ = create_engine(EngineSpec(num_blocks=10, block_size=8, block_shards=2))
    engine.add_request(create_request(prompt=15, hold=True))
    engine.step()
    now = take_snapshot(engine)
    assert (now.total_blocks, now.free_blocks, now.leased_blocks) == (18, 16, 2)


def test_requests_in_every_state() -> None:
    spec = EngineSpec(num_blocks=33, max_num_seqs=4, max_num_batched_tokens=16)
    engine, _ = create_engine(spec)
    engine.add_request(create_request(prompt=9, hold=True))
    engine.step()
    engine.add_request(create_request(prompt=21, fetch_from="peer"))
    engine.add_request(create_request(prompt=8))
    engine.add_request(create_request(prompt=20))
    engine.step()
    engine.add_request(create_request(prompt=50))
    engine.add_request(create_request(prompt=60, fetch_from="peer"))
    now = take_snapshot(engine)
    assert (now.num_held, now.num_receiving) == (1, 1)
    assert (now.num_running, now.num_waiting) == (2, 2)
    # One row of the decode, the second chunk of a prompt, and a prompt that waits. Prompts that
    # another worker computes are no work for this one.
    assert now.waiting_tokens == 1 + 12 + 50
    assert now.leased_blocks == 3
    assert now.total_blocks - now.free_blocks == 3 + 6 + 2 + 5


def test_totals_survive_their_requests() -> None:
    engine, _ = create_engine()
    prompt = list(range(12))
    for _ in range(2):
        engine.add_request(create_request(prompt, max_tokens=3))
        run(engine)
    now = take_snapshot(engine)
    assert (now.num_running, now.num_waiting, now.waiting_tokens) == (0, 0, 0)
    assert now.free_blocks == now.total_blocks
    assert now.generation_tokens == 6
    assert now.prompt_tokens == 12 + 4
    assert (now.prefix_queries, now.prefix_hits) == (24, 8)
    assert now.steps == 6


def test_what_experts_did_is_counted_by_step_and_in_total() -> None:
    engine, _ = create_engine(EngineSpec(max_num_batched_tokens=16))
    engine.add_request(create_request(prompt=9, max_tokens=2))
    seen = []
    while engine.step():
        seen.append([(layer.layer, layer.distinct, layer.loaded_bytes) for layer in engine.traffic])
    prompt, token = ([(layer, count, 100 * count) for layer in range(4)] for count in (4, 1))
    assert seen == [prompt, token]
    now = take_snapshot(engine)
    assert now.experts == dict.fromkeys(range(4), LayerTotals(2, 5, 500))
