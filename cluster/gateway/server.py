"""One gateway process: opens both front doors, meets the workers, closes everything in order.

start ─► doors open, requests refused with 503 ─ follow ─► connected to workers ─► stop
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence

import grpc
import structlog
from prometheus_client import CollectorRegistry

from twinflow.cluster.dispatch.admission import AdmissionLimits
from twinflow.cluster.dispatch.census import Census, take_census
from twinflow.cluster.dispatch.config import DispatchConfig
from twinflow.cluster.dispatch.dispatcher import Dispatcher
from twinflow.cluster.dispatch.history import History
from twinflow.cluster.dispatch.roster import Duty
from twinflow.cluster.dispatch.turnstile import TurnstileConfig
from twinflow.cluster.dispatch.worker_client import WorkerClient
from twinflow.cluster.gateway.admin_desk import AdminDesk
from twinflow.cluster.gateway.auth import Authenticator
from twinflow.cluster.gateway.backend import ModelInfo
from twinflow.cluster.gateway.config import GatewayConfig
from twinflow.cluster.gateway.control import ControlService
from twinflow.cluster.gateway.grpc_door import GrpcConfig, GrpcDoor, create_grpc_server
from twinflow.cluster.gateway.grpc_door.admin import AdminOffice
from twinflow.cluster.gateway.http.app import create_app
from twinflow.cluster.gateway.http.config import HttpConfig
from twinflow.cluster.gateway.http.dependencies import HttpDependencies
from twinflow.cluster.gateway.http.server import HttpServer
from twinflow.cluster.gateway.late_backend import LateBackend
from twinflow.cluster.gateway.latent_metrics import export_loss
from twinflow.cluster.gateway.metrics import GatewayMetrics
from twinflow.cluster.gateway.pool_metrics import PoolCollector
from twinflow.cluster.gateway.text_codec import ModelTextCodec
from twinflow.cluster.gateway.text_pipeline import TextPipeline
from twinflow.protos.errors import TwinflowError
from twinflow.protos.twinflow.internal.v1.gateway_pb2_grpc import add_GatewayServicer_to_server
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.text.chat_template import ChatTemplate
from twinflow.runtime.text.template_renderer import TemplateRenderer
from twinflow.runtime.text.tokenizer import Tokenizer
from twinflow.workers.mutual_tls import MutualTls
from twinflow.workers.rpc import create_server, listen_on

# Every answer of the health service is a round of probes; balancers ask the service far more
# often than that.
_GRPC_READINESS_S = 10.0
# The controller replaces workers; a request that finds none waits for that.
_REJOIN_S = 60.0
# The controller runs on the same machine.
_CONTROL_HOST = "127.0.0.1"
_NO_ADMIN_TOKEN = (
    "This server takes no operators' calls: it was started without an admin token. Set "
    "TWINFLOW_ADMIN_TOKEN for `twinflow serve`, and for whoever calls."
)


class GatewayServer:
    """A gateway's life.

    Args:
        config: of the gateway.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._tls = MutualTls.of(config.tls)
        self._registry = CollectorRegistry()
        self._metrics = GatewayMetrics(self._registry, config.names[0])
        if config.loss is not None:
            export_loss(self._registry, config.names[0], config.loss)
        self._backend = LateBackend()
        self._desk = AdminDesk()
        self._registry.register(PoolCollector(config.names[0], self._desk))
        self._control: grpc.aio.Server | None = None
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
        """Runs sequences; there from the first `follow` on."""
        if self._dispatcher is None:
            raise RuntimeError("the gateway knows no workers")
        return self._dispatcher

    async def start(self, report: Callable[[str, int, int], None]) -> dict[str, str]:
        """Open both front doors, and one for the controller; returns their addresses by name.

        Raises:
            SetupError: tokenizer or template cannot be served, or a port is taken.
        """
        report("loading the tokenizer", 0, 0)
        doors = await self._open_doors(await self._pipeline())
        # Behind the pipeline, like the doors: gRPC minds processes that are forked while it runs.
        self._control = create_server(self._config.token, self._tls)
        add_GatewayServicer_to_server(
            ControlService(self, self._desk, self._metrics), self._control
        )
        doors["control"] = listen_on(self._control, _CONTROL_HOST, "the gateway", self._tls)
        await self._control.start()
        return doors

    @property
    def clients(self) -> Mapping[str, WorkerClient]:
        """The workers that it uses, by id."""
        return {} if self._dispatcher is None else self._dispatcher.roster.clients

    async def follow(self, duties: Sequence[Duty], missing: tuple[str, ...] = ()) -> None:
        """Use these workers; requests are served from the first time on.

        Args:
            duties: what each of them is used for.
            missing: what there should be besides, in words.

        Raises:
            SetupError: those that are there at first cannot serve together.
            Unavailable: one of them does not answer.
        """
        if self._dispatcher is None:
            workers = [duty.where for duty in duties]
            census = await take_census(workers, self._config.token, self._tls)
            self._dispatcher = self._create_dispatcher(census, duties)
            self._dispatcher.start()
            self._backend.begin(self._dispatcher)
        self._dispatcher.follow(duties, missing)

    def _create_dispatcher(self, census: Census, duties: Sequence[Duty]) -> Dispatcher:
        config = self._config
        return Dispatcher(
            self._describe(census),
            load_model_config(config.model).eos_token_ids,
            duties,
            config.token,
            limits=AdmissionLimits(
                max_requests=config.max_queued_requests,
                max_tokens=config.max_queued_tokens,
                max_key_requests=config.max_key_queued_requests,
                max_key_tokens=config.max_key_queued_tokens,
                longest_wait_s=config.longest_wait_s,
                turns=config.fair_tokens is not None,
            ),
            listener=self._metrics,
            config=DispatchConfig(
                rejoin_s=_REJOIN_S,
                turnstile=TurnstileConfig(config.fair_tokens),
                tls=self._tls,
            ),
            reference=census.reference,
        )

    def _history(self) -> History | None:
        return None if self._dispatcher is None else self._dispatcher.history

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

    async def _pipeline(self) -> TextPipeline:
        config, backend, metrics = self._config, self._backend, self._metrics
        tokenizer = Tokenizer.load(config.model)
        template = ChatTemplate.load(config.model)
        if template is not None:
            # The workers' context may be shorter than the model's, but not longer.
            longest = config.max_model_len or load_model_config(config.model).max_position
            self._renderer = TemplateRenderer(template, longest)
            await self._renderer.start()
        codec = ModelTextCodec(tokenizer, self._renderer)
        if config.seed is None:
            return TextPipeline(backend, codec, metrics)
        seeds = random.Random(config.seed)
        return TextPipeline(backend, codec, metrics, new_seed=lambda: seeds.getrandbits(63))

    async def _open_doors(self, pipeline: TextPipeline) -> dict[str, str]:
        config = self._config
        authenticator = Authenticator(config.api_keys)
        http = HttpConfig(host=config.host, port=config.port)
        self._http = HttpServer(
            create_app(
                HttpDependencies(
                    pipeline=pipeline,
                    backend=self._backend,
                    registry=self._registry,
                    authenticator=authenticator,
                    config=http,
                    history=self._history,
                )
            ),
            http,
        )
        await self._http.start()
        grpc = GrpcConfig(
            host=config.host, port=config.grpc_port, readiness_interval_s=_GRPC_READINESS_S
        )
        operators = Authenticator(config.admin_tokens, name="admin token", closed=_NO_ADMIN_TOKEN)
        office = AdminOffice(operators, self._desk, lambda: self.clients, self._history)
        self._grpc = create_grpc_server(pipeline, self._backend, authenticator, grpc, office)
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
        if self._control is not None:
            await self._control.stop(None)
