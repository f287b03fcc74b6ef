"""What the routes are built from."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from twinflow.cluster.dispatch.history import History
from twinflow.cluster.gateway.auth import Authenticator
from twinflow.cluster.gateway.backend import Backend
from twinflow.cluster.gateway.http.config import HttpConfig
from twinflow.cluster.gateway.text_pipeline import TextPipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpDependencies:
    """Everything behind the HTTP front door.

    Attributes:
        pipeline: runs requests.
        backend: knows the model and the state of the workers.
        registry: what `/metrics` shows.
        authenticator: decides who may call; by default everybody.
        config: limits.
        history: what became of the latest sequences; None while there are no workers.
        wall_clock: Unix time, for `created`.
    """

    pipeline: TextPipeline
    backend: Backend
    registry: CollectorRegistry
    authenticator: Authenticator = field(default_factory=Authenticator)
    config: HttpConfig = field(default_factory=HttpConfig)
    history: Callable[[], History | None] = lambda: None
    wall_clock: Callable[[], float] = time.time
