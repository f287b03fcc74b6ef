"""The gateway's gRPC door: `twinflow.v1.Inference`, `Admin`, health and reflection on one port.

    bytes ─ entrance ─ endpoint ─ inference ─► the pipeline that HTTP shares
              │           └ decodes, counts messages
              └ keys, limits, time-outs, errors as status with details

It is not called `grpc`, so that no path can mistake it for the library.
"""

from twinflow.cluster.gateway.auth import Authenticator
from twinflow.cluster.gateway.backend import Backend
from twinflow.cluster.gateway.grpc_door import admin, health, inference
from twinflow.cluster.gateway.grpc_door.config import GrpcConfig
from twinflow.cluster.gateway.grpc_door.endpoint import Single
from twinflow.cluster.gateway.grpc_door.entrance import Entrance, Gates
from twinflow.cluster.gateway.grpc_door.reflection import reflection_endpoints
from twinflow.cluster.gateway.grpc_door.server import GrpcDoor
from twinflow.cluster.gateway.text_pipeline import TextPipeline

NO_OPERATORS = "This server has no operators."

__all__ = ["GrpcConfig", "GrpcDoor", "create_grpc_server"]


def create_grpc_server(
    pipeline: TextPipeline,
    backend: Backend,
    authenticator: Authenticator,
    config: GrpcConfig,
    office: admin.AdminOffice | None = None,
) -> GrpcDoor:
    """Put the door together; to be called, and started, in the event loop that serves.

    Args:
        pipeline: runs requests.
        backend: the pipeline's; says whether it is ready.
        authenticator: decides who may call.
        config: where to listen, and limits.
        office: answers operators; None for a door without them.
    """
    single = Single(config.receive_timeout_s)
    board = health.HealthBoard((inference.SERVICE,))
    endpoints = {
        **inference.InferenceService(pipeline).endpoints(single),
        **board.endpoints(single),
    }
    services = [inference.SERVICE, health.SERVICE]
    operators = Authenticator(closed=NO_OPERATORS)
    if office is not None:
        endpoints |= admin.AdminService(office).endpoints(config.receive_timeout_s)
        services.append(admin.SERVICE)
        operators = office.authenticator
    if config.reflection:
        endpoints |= reflection_endpoints(services)
    entrance = Entrance(endpoints, Gates(authenticator, operators), config, pipeline.clock)
    return GrpcDoor(entrance, board, backend, config)
