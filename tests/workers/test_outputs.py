"""Outputs reach the owner of their request, and nobody else."""

from dataclasses import dataclass, field

from tests.support.engines import create_request

from twinflow.protos.errors import EngineError, TwinflowError
from twinflow.runtime.lifecycle import EngineOutputs, ReceiveOrder
from twinflow.runtime.outputs import FinishReason, TokenDelta
from twinflow.workers.outputs import OutputRouter

TOKEN = TokenDelta(token_ids=(5,))
LAST = TokenDelta(token_ids=(6,), finish_reason=FinishReason.LENGTH)


@dataclass(eq=False)
class Owner:
    """Keeps what it hears."""

    heard: list[object] = field(default_factory=list)
    flushes: int = 0

    def deliver(self, engine_id: str, delta: TokenDelta) -> None:
        self.heard.append((engine_id, delta))

    def fail(self, engine_id: str, error: TwinflowError) -> None:
        self.heard.append((engine_id, error))

    def flush(self) -> None:
        self.flushes += 1


def router(orders: list[ReceiveOrder] | None = None) -> OutputRouter:
    return OutputRouter(([] if orders is None else orders).append)


def test_each_owner_hears_of_its_requests_and_is_flushed_once() -> None:
    outputs, first, second, idle = router(), Owner(), Owner(), Owner()
    for engine_id, owner in (("a", first), ("b", first), ("c", second), ("d", idle)):
        outputs.own(engine_id, owner)

    outputs.publish(EngineOutputs(deltas=[("a", TOKEN), ("b", TOKEN), ("c", TOKEN)]))

    assert first.heard == [("a", TOKEN), ("b", TOKEN)]
    assert second.heard == [("c", TOKEN)]
    assert (first.flushes, second.flushes, idle.flushes) == (1, 1, 0)


def test_a_request_is_forgotten_with_its_last_delta() -> None:
    outputs, owner = router(), Owner()
    outputs.own("a", owner)
    outputs.publish(EngineOutputs(deltas=[("a", TOKEN), ("a", LAST), ("a", TOKEN)]))
    assert owner.heard == [("a", TOKEN), ("a", LAST)]
    assert "a" not in outputs
    assert len(outputs) == 0


def test_a_request_is_forgotten_with_its_failure() -> None:
    outputs, owner, error = router(), Owner(), EngineError("broken")
    outputs.own("a", owner)
    outputs.fail("a", error)
    outputs.fail("a", error)
    assert owner.heard == [("a", error)]
    assert owner.flushes == 1
    assert len(outputs) == 0


def test_what_nobody_owns_is_dropped() -> None:
    outputs, owner = router(), Owner()
    outputs.own("a", owner)
    outputs.disown("a")
    outputs.disown("never there")
    outputs.publish(EngineOutputs(deltas=[("a", TOKEN)], failures=[("a", EngineError("x"))]))
    assert owner.heard == []
    assert owner.flushes == 0


def test_everything_fails_when_the_engine_does() -> None:
    outputs, first, second, error = router(), Owner(), Owner(), EngineError("dead")
    outputs.own("a", first)
    outputs.own("b", second)
    outputs.fail_all(error)
    assert (first.heard, second.heard) == ([("a", error)], [("b", error)])
    assert list(outputs) == []


def test_an_owner_may_give_its_requests_up_while_it_is_told() -> None:
    """A session that is overrun does."""
    outputs = router()

    class Leaving(Owner):
        def flush(self) -> None:
            for engine_id in outputs:
                outputs.disown(engine_id)

    owner = Leaving()
    for engine_id in "abc":
        outputs.own(engine_id, owner)
    outputs.publish(EngineOutputs(deltas=[("a", TOKEN), ("b", TOKEN)]))
    assert len(outputs) == 0


def test_orders_to_receive_are_passed_on() -> None:
    orders: list[ReceiveOrder] = []
    order = ReceiveOrder(create_request(), first_block=0, blocks=(1,))
    router(orders).publish(EngineOutputs(receives=[order]))
    assert orders == [order]
