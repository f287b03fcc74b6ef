"""The application: routes, and the gate in front of them.

FastAPI routes and describes; bodies are read, checked and written by our own strict code, so that
every error has OpenAI's shape and no input is converted silently.
"""

from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException

import twinflow
from twinflow.cluster.gateway.http.dashboard_routes import (
    PAGE_PATHS,
    REQUESTS_PATH,
    DashboardRoutes,
)
from twinflow.cluster.gateway.http.dependencies import HttpDependencies
from twinflow.cluster.gateway.http.gate import Gate, http_error
from twinflow.cluster.gateway.http.inference_routes import InferenceRoutes
from twinflow.cluster.gateway.http.status_routes import StatusRoutes
from twinflow.cluster.gateway.validation.chat import ChatFields
from twinflow.cluster.gateway.validation.completion import CompletionFields
from twinflow.cluster.gateway.validation.strict import StrictModel
from twinflow.cluster.gateway.validation.tokenization import DetokenizeFields, TokenizeFields

_PAIRS = {"name": "pairs", "in": "query", "schema": {"enum": ["all", "any"], "default": "all"}}


def create_app(dependencies: HttpDependencies) -> FastAPI:
    """The ASGI application of one gateway."""
    app = FastAPI(
        title="twinflow",
        version=twinflow.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: http_error},
    )
    app.add_middleware(
        Gate,
        authenticator=dependencies.authenticator,
        clock=dependencies.pipeline.clock,
        deadline_s=dependencies.config.deadline_s,
    )
    inference = InferenceRoutes(dependencies)
    for path, endpoint, body in (
        ("/v1/chat/completions", inference.chat, ChatFields),
        ("/v1/completions", inference.completion, CompletionFields),
        ("/tokenize", inference.tokenize, TokenizeFields),
        ("/detokenize", inference.detokenize, DetokenizeFields),
    ):
        app.add_api_route(path, endpoint, methods=["POST"], openapi_extra=_described(body))
    status = StatusRoutes(dependencies)
    app.add_api_route("/v1/models", status.models)
    app.add_api_route("/v1/models/{model:path}", status.model)
    app.add_api_route("/health", status.health)
    app.add_api_route("/live", status.live)
    app.add_api_route("/ready", status.ready, openapi_extra={"parameters": [_PAIRS]})
    app.add_api_route("/version", status.version)
    app.add_api_route("/server_info", status.server_info)
    app.add_api_route("/metrics", status.metrics)
    dashboard = DashboardRoutes(dependencies)
    for path in PAGE_PATHS:
        app.add_api_route(path, dashboard.file, include_in_schema=False)
    app.add_api_route(REQUESTS_PATH, dashboard.requests)
    return app


def _described(body: type[StrictModel]) -> dict[str, Any]:
    schema = body.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
