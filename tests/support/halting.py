"""An engine that stands still at a known point, so that a test can look at it, or do something."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tests.support.engines import FakeExecutor
from tests.support.workers import PATIENCE_S

from twinflow.runtime.engine import Engine
from twinflow.runtime.executor import LayersDone, Work
from twinflow.runtime.outputs import SampledRun
from twinflow.workers.engine_loop import EngineLoop


class HaltingExecutor(FakeExecutor):
    """Stands still in the step in which a request would get its next token.

    Args:
        block_size: of the engine.
        tokens: which a request must have to be waited with.
    """

    def __init__(self, block_size: int, tokens: int) -> None:
        super().__init__(block_size)
        self._tokens = tokens
        self._halted = threading.Event()
        self._go_on = threading.Event()

    def execute(self, work: Sequence[Work], on_layers: LayersDone | None) -> list[SampledRun]:
        if any(len(item.request.output_token_ids) >= self._tokens for item in work):
            self._halted.set()
            assert self._go_on.wait(PATIENCE_S)
        return super().execute(work, on_layers)

    async def halted(self) -> None:
        """Wait until the engine stands still."""
        assert await asyncio.to_thread(self._halted.wait, PATIENCE_S)

    def go_on(self) -> None:
        """Stand still no longer."""
        self._go_on.set()


@asynccontextmanager
async def kept_busy(loop: EngineLoop) -> AsyncIterator[threading.Event]:
    """The engine does nothing meanwhile, or until the event; what it is told, it hears at once."""
    go_on = threading.Event()

    def keep(engine: Engine) -> None:
        assert go_on.wait(PATIENCE_S)

    loop.post(keep)
    try:
        yield go_on
    finally:
        go_on.set()
