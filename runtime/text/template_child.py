"""One rendering process, seen from the parent: start, one exchange at a time, kill.

Which requests go to it and what a failure means for them is `template_renderer`'s.
"""

import asyncio
import os
import subprocess
import sys
from asyncio.subprocess import Process
from contextlib import suppress

from twinflow.protos.errors import DeadlineExceeded
from twinflow.runtime.text import template_process
from twinflow.runtime.text.template_wire import HEADER, decode

_EXIT_S = 5.0


class ChildFailed(Exception):
    """The process is of no more use: it died or did not keep to the protocol."""


class TemplateChild:
    """A process of `template_process`; use `start`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    async def start(cls) -> "TemplateChild":
        """Start the process. It inherits the module search path and no other variable.

        Raises:
            OSError: the system does not allow another process.
        """
        search_path = [os.path.abspath(entry) for entry in sys.path if entry]
        process = await asyncio.create_subprocess_exec(
            # -P: do not search the current directory.
            *(sys.executable, "-P", "-m", template_process.__name__),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(search_path)},
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended, as far as is known."""
        return self._process.returncode is None

    async def exchange(
        self, frame: bytes, *, timeout_s: float, max_reply: int
    ) -> dict[str, object]:
        """Send a frame and wait for the answer.

        Args:
            frame: from `template_wire.encode`.
            timeout_s: for all of it.
            max_reply: bytes that an answer may have.

        Raises:
            TimeoutError: no answer in time. The process has to be killed.
            ChildFailed: the process ended, or its answer is none.
        """
        sink, source = self._process.stdin, self._process.stdout
        if sink is None or source is None:
            raise ChildFailed("the process has no pipes")
        async with asyncio.timeout(timeout_s):
            try:
                sink.write(frame)
                await sink.drain()
                (length,) = HEADER.unpack(await source.readexactly(HEADER.size))
                if length > max_reply:
                    raise ChildFailed(f"an answer of {length} bytes, more than {max_reply}")
                return decode(await source.readexactly(length))
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                raise ChildFailed("the process ended or sent no message") from error

    async def kill(self) -> None:
        """End the process at once and wait until it is gone."""
        with suppress(ProcessLookupError):
            self._process.kill()
        try:
            async with asyncio.timeout(_EXIT_S):
                await self._process.communicate()  # closes the pipes, too
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"template process {self.pid} was killed and still runs after {_EXIT_S} s"
            ) from error
