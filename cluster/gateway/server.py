"""One gateway process: connects to the workers, opens both front doors, closes them in order."""

import asyncio
import random
import time
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry

from twinflow.cluster.dispatch.admission import AdmissionLimits
from twinflow.cluster.dispatch.census import Census, take_census
from twinflow.cluster.dispatch.dispatcher import Dispatcher
from twinflow.cluster.dispatch.worker_client import WorkerAddress
from twinflow.cluster.gateway.auth import Authenticator
from twinflow.cluster.gateway.backend import ModelInfo
from twinflow.cluster.gateway.config import GatewayConfig
from twinflow.cluster.gateway.grpc_door import GrpcConfig, GrpcDoor, create_grpc_server
from twinflow.cluster.gateway.http.app import create_app
from twinflow.cluster.gateway.http.config import HttpConfig
from twinflow.cluster.gateway.http.dependencies import HttpDependencies
from twinflow.cluster.gateway.http.server import HttpServer
from twinflow.cluster.gateway.latent_metrics import export_loss
from twinflow.cluster.gateway.metrics import GatewayMetrics
from twinflow.cluster.gateway.text_codec import ModelTextCodec
from twinflow.cluster.gateway.text_pipeline import TextPipeline
from twinflow.protos.errors import TwinflowError
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.text.chat_template import ChatTemplate
from twinflow.runtime.text.template_renderer import TemplateRenderer
from twinflow.runtime.text.tokenizer import Tokenizer

# Every answer of the health service is a round of probes; balancers ask the service far more
# often than that.
_GRPC_READINESS_S = 10.0


class GatewayServer:
    """A gateway's life.

    Args:
        config: of the gateway.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._dispatcher: Dispatcher | None = None
        self._renderer: TemplateRenderer | None = None
        self._http: HttpServer | None = None
        self._grpc: GrpcDoor | None = None

    @classmethod
    def from_json(cls, data: bytes) -> "GatewayServer":
        """From a configuration as a launcher sends it."""
        return cls(GatewayConfig.decode(data))

    @property
    def dispatcher(self) -> Dispatcher:
        """Runs sequences; there from `start` on."""
        if self._dispatcher is None:
            raise RuntimeError("the gateway has not started")
        return self._dispatcher

    async def start(self, report: Callable[[str, int, int], None]) -> dict[str, str]:
        """Open both front doors; returns their addresses by name.

        Raises:
            SetupError: tokenizer or template cannot be served, workers disagree, or a port is
                taken.
        """
        config = self._config
        report("asking the workers", 0, 0)
        workers = [WorkerAddress(name, address) for name, address in config.workers.items()]
        census = await take_census(workers, config.token)
        report("loading the tokenizer", 0, 0)
        model = self._describe(census)
        registry = CollectorRegistry()
        metrics = GatewayMetrics(registry, model.name)
        if config.loss is not None:
            export_loss(registry, model.name, config.loss)
        self._dispatcher = Dispatcher(
            model,
            load_model_config(config.model).eos_token_ids,
            workers,
            config.token,
            limits=AdmissionLimits(
                max_requests=config.max_queued_requests, max_tokens=config.max_queued_tokens
            ),
            listener=metrics,
        )
        self._dispatcher.start()
        pipeline = await self._pipeline(self._dispatcher, metrics, census.max_model_len)
        return await self._open_doors(pipeline, self._dispatcher, registry)

    def _describe(self, census: Census) -> ModelInfo:
        return ModelInfo(
            name=self._config.names[0],
            aliases=tuple(self._config.names[1:]),
            root=str(self._config.model),
            max_model_len=census.max_model_len,
            vocab_size=census.vocab_size,
            dtype=census.dtype,
            block_size=census.block_size,
            created=int(time.time()),
        )

    async def _pipeline(
        self, dispatcher: Dispatcher, metrics: GatewayMetrics, max_model_len: int
    ) -> TextPipeline:
        tokenizer = Tokenizer.load(self._config.model)
        template = ChatTemplate.load(self._config.model)
        if template is not None:
            self._renderer = TemplateRenderer(template, max_model_len)
            await self._renderer.start()
        codec = ModelTextCodec(tokenizer, self._renderer)
        if self._config.seed is None:
            return TextPipeline(dispatcher, codec, metrics)
        seeds = random.Random(self._config.seed)
        return TextPipeline(dispatcher, codec, metrics, new_seed=lambda: seeds.getrandbits(63))

    async def _open_doors(
        self, pipeline: TextPipeline, dispatcher: Dispatcher, registry: CollectorRegistry
    ) -> dict[str, str]:
        config = self._config
        authenticator = Authenticator(config.api_keys)
        http = HttpConfig(host=config.host, port=config.port)
        self._http = HttpServer(
            create_app(
                HttpDependencies(
                    pipeline=pipeline,
                    backend=dispatcher,
                    registry=registry,
                    authenticator=authenticator,
                    config=http,
                )
            ),
            http,
        )
        await self._http.start()
        grpc = GrpcConfig(
            host=config.host, port=config.grpc_port, readiness_interval_s=_GRPC_READINESS_S
        )
        self._grpc = create_grpc_server(pipeline, dispatcher, authenticator, grpc)
        grpc_port = await self._grpc.start()
        host = f"[{config.host}]" if ":" in config.host else config.host
        return {"http": f"{host}:{self._http.port}", "grpc": f"{host}:{grpc_port}"}

    async def wait_failed(self) -> TwinflowError:
        """Wait for ever: without a worker it still answers, and says so."""
        never: asyncio.Future[TwinflowError] = asyncio.get_running_loop().create_future()
        return await never

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests and wait for running ones, at most `grace_s`; may be cancelled."""
        if self._grpc is not None:
            self._grpc.drain()
        if self._dispatcher is not None:
            await self._dispatcher.drain(grace_s)

    async def stop(self, grace_s: float) -> None:
        """Drain, end what still runs with an error that its caller gets, close everything."""
        await self.drain(grace_s)
        if self._dispatcher is not None:
            if left := self._dispatcher.num_live:
                structlog.get_logger().warning("sequences cut off", sequences=left)
            # Ends what is left with an error, so that the doors have nothing to wait for.
            await self._dispatcher.close()
        if self._grpc is not None:
            await self._grpc.stop(1.0)
        if self._http is not None:
            await self._http.stop()
        if self._renderer is not None:
            await self._renderer.close()
