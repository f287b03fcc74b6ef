"""Routes that tell what is served and how it is."""

import asyncio

import msgspec
from fastapi import Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import twinflow
from twinflow.cluster.gateway.backend import ModelInfo, Readiness
from twinflow.cluster.gateway.http.dependencies import HttpDependencies
from twinflow.cluster.gateway.http.schema import ModelCard, ModelList
from twinflow.cluster.gateway.validation.request import check_model
from twinflow.protos.errors import InvalidRequest

_RETRY_AFTER = {"retry-after": "1"}


class StatusRoutes:
    """Endpoints without a body.

    Alive means that this process works; ready means that everything behind it does, because a token
    has just gone through every pair of workers.
    """

    def __init__(self, dependencies: HttpDependencies) -> None:
        self._backend = dependencies.backend
        self._registry = dependencies.registry
        self._readiness_timeout_s = dependencies.config.readiness_timeout_s

    async def models(self) -> Response:
        """Every name of the served model."""
        served = self._backend.model
        cards = [_card(name, served) for name in (served.name, *served.aliases)]
        return _json_response(ModelList(cards))

    async def model(self, request: Request) -> Response:
        """The served model under one of its names."""
        name: str = request.path_params["model"]
        check_model(self._backend.model, name)
        return _json_response(_card(name, self._backend.model))

    async def health(self) -> Response:
        """Whether this gateway works."""
        alive = self._backend.alive()
        return _json_response({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def live(self) -> Response:
        """The same, under the name that Kubernetes' probes use."""
        return await self.health()

    async def ready(self, request: Request) -> Response:
        """Whether all pairs of workers serve requests, or `?pairs=any` of them; and the proof."""
        pairs = request.query_params.get("pairs", "all")
        if pairs not in ("all", "any"):
            raise InvalidRequest("pairs must be all or any.", "pairs")
        try:
            async with asyncio.timeout(self._readiness_timeout_s):
                readiness = await self._backend.readiness()
        except TimeoutError:
            reason = f"the workers were not heard of for {self._readiness_timeout_s:g} s"
            readiness = Readiness(ready=False, reason=reason)
        if readiness.ready or (readiness.degraded and pairs == "any"):
            return _json_response(readiness)
        return _json_response(readiness, 503, _RETRY_AFTER)

    async def version(self) -> Response:
        """twinflow's version."""
        return _json_response({"version": twinflow.__version__})

    async def server_info(self) -> Response:
        """What serves: the model, and every worker with how it divides its device."""
        served = self._backend.model
        workers = self._backend.workers()
        return _json_response(
            {"version": twinflow.__version__, "model": served, "workers": workers}
        )

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


def _card(name: str, served: ModelInfo) -> ModelCard:
    return ModelCard(
        id=name,
        created=served.created,
        root=served.root,
        max_model_len=served.max_model_len,
        parent=None if name == served.name else served.name,
    )


def _json_response(
    body: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")
