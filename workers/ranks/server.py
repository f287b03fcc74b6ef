"""A rank that is not rank 0 as a service: loads its share, follows, ends with its worker.

It serves nobody but rank 0 and listens nowhere. The object is the same under every launcher.
"""

import asyncio
import threading

import structlog
import torch

from twinflow.protos.errors import RankLost
from twinflow.runtime.build import LoadProgress
from twinflow.workers.config import WorkerConfig
from twinflow.workers.options import engine_options
from twinflow.workers.ranks.build import BuiltFollower, build_follower
from twinflow.workers.ranks.config import TeamConfig

# What rank 0 gets, beyond the grace of its requests, to say that it ends.
_LAST_WORD_S = 10.0


class FollowerServer:
    """A follower's life from loading to the end of its worker.

    Args:
        config: of the worker, with the rank.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self._built: BuiltFollower | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[RankLost | None] | None = None

    @property
    def built(self) -> BuiltFollower:
        """What the rank consists of; there from `start` on."""
        if self._built is None:
            raise RuntimeError("the rank has not started")
        return self._built

    async def start(self, progress: LoadProgress | None = None) -> None:
        """Load the share of this rank and begin to follow.

        Raises:
            SetupError: the model or the configuration cannot be served.
            RankLost: another rank did not come, or is gone.
        """
        events = asyncio.get_running_loop()
        self._ended = events.create_future()
        self._built = await asyncio.to_thread(self._build, progress)
        self._thread = threading.Thread(
            target=self._follow, args=(self._built, events), name="twinflow-rank", daemon=True
        )
        self._thread.start()

    async def wait_ended(self) -> None:
        """Wait until rank 0 has ended the worker in good order.

        Raises:
            RankLost: it ended otherwise; the process shall end, too.
        """
        if self._ended is None:
            raise RuntimeError("the rank has not started")
        lost = await asyncio.shield(self._ended)
        if lost is not None:
            raise lost

    async def drain(self, grace_s: float) -> None:
        """Wait until rank 0 has ended the worker, at most `grace_s`; may be cancelled."""
        if self._ended is not None:
            await asyncio.wait([self._ended], timeout=grace_s)

    async def stop(self, grace_s: float) -> None:
        """End with rank 0, or without it if it takes longer than its requests may.

        Args:
            grace_s: what the requests of rank 0 are given to finish.
        """
        if self._thread is None or self._ended is None:
            return
        await self.drain(grace_s + _LAST_WORD_S)
        if not self._ended.done():
            structlog.get_logger().warning(
                "rank 0 did not end the worker", worker=self.config.worker_id
            )
        await asyncio.to_thread(self.built.follower.close)
        await asyncio.to_thread(self._thread.join)

    def _build(self, progress: LoadProgress | None) -> BuiltFollower:
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        options, team = engine_options(self.config), TeamConfig.of(self.config)
        return build_follower(options, team, progress=progress)

    def _follow(self, built: BuiltFollower, events: asyncio.AbstractEventLoop) -> None:
        lost: RankLost | None = None
        try:
            built.loop.run()
        except RankLost as error:
            lost = error
        events.call_soon_threadsafe(self._end, lost)

    def _end(self, lost: RankLost | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(lost)
