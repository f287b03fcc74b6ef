"""The gateway's gRPC door: `twinflow.v1.Inference`, health and reflection on one port.

    bytes ─ entrance ─ endpoint ─ inference ─► the pipeline that HTTP shares
              │           └ decodes, counts messages
              └ keys, limits, time-outs, errors as status with details

It is not called `grpc`, so that no path can mistake it for the library.
"""

from twinflow.cluster.gateway.auth import Authenticator
from twinflow.cluster.gateway.backend import Backend
from twinflow.cluster.gateway.grpc_door import health, inference
from twinflow.cluster.gateway.grpc_door.config import GrpcConfig
from twinflow.cluster.gateway.grpc_door.endpoint import Single
from twinflow.cluster.gateway.grpc_door.entrance import Entrance
from twinflow.cluster.gateway.grpc_door.reflection import reflection_endpoints
from twinflow.cluster.gateway.grpc_door.server import GrpcDoor
from twinflow.cluster.gateway.text_pipeline import TextPipeline

__all__ = ["GrpcConfig", "GrpcDoor", "create_grpc_server"]


def create_grpc_server(
    pipeline: TextPipeline, backend: Backend, authenticator: Authenticator, config: GrpcConfig
) -> GrpcDoor:
    """Put the door together; to be called, and started, in the event loop that serves.

    Args:
        pipeline: runs requests.
        backend: the pipeline's; says whether it is ready.
        authenticator: decides who may call.
        config: where to listen, and limits.
    """
    single = Single(config.receive_timeout_s)
    board = health.HealthBoard((inference.SERVICE,))
    endpoints = {
        **inference.InferenceService(pipeline).endpoints(single),
        **board.endpoints(single),
    }
    if config.reflection:
        endpoints |= reflection_endpoints((inference.SERVICE, health.SERVICE))
    entrance = Entrance(endpoints, authenticator, config, pipeline.clock)
    return GrpcDoor(entrance, board, backend, config)
