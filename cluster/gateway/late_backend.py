"""A backend that front doors can hold before it is there, which is while the workers start.

Until then requests are refused with a 503 and readiness says why. It adds nothing of its own.
"""

from collections.abc import AsyncIterator

from twinflow.cluster.gateway.backend import (
    Backend,
    GenerationSpec,
    ModelInfo,
    Readiness,
    WorkerInfo,
)
from twinflow.protos.errors import Unavailable
from twinflow.runtime.outputs import TokenDelta

_RETRY_AFTER_S = 2.0


class LateBackend:
    """Hands everything to a `Backend` that comes later; see there."""

    def __init__(self) -> None:
        self._backend: Backend | None = None

    def begin(self, backend: Backend) -> None:
        """From now on requests are served."""
        self._backend = backend

    @property
    def model(self) -> ModelInfo:
        """See `Backend.model`.

        Raises:
            Unavailable: nobody knows yet what the workers have agreed on.
        """
        return self._there().model

    def workers(self) -> tuple[WorkerInfo, ...]:
        """See `Backend.workers`; none are known before they are there."""
        return () if self._backend is None else self._backend.workers()

    def admit(self, specs: tuple[GenerationSpec, ...]) -> None:
        """See `Backend.admit`."""
        self._there().admit(specs)

    def generate(self, spec: GenerationSpec) -> AsyncIterator[TokenDelta]:
        """See `Backend.generate`."""
        return self._there().generate(spec)

    def release(self, spec: GenerationSpec) -> None:
        """See `Backend.release`."""
        self._there().release(spec)

    async def readiness(self) -> Readiness:
        """See `Backend.readiness`."""
        if self._backend is None:
            return Readiness(False, "the server is starting")
        return await self._backend.readiness()

    def alive(self) -> bool:
        """See `Backend.alive`."""
        return self._backend is None or self._backend.alive()

    def _there(self) -> Backend:
        if self._backend is None:
            raise Unavailable("The server is starting.", retry_after_s=_RETRY_AFTER_S)
        return self._backend
