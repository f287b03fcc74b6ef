"""Server reflection: lets `grpcurl list` and `describe` work without .proto files.

The library has v1alpha only. v1 is the same messages under another package name, so one servicer
answers both; v1 is not in the list it returns, because the library has no descriptor of it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha.reflection import SERVICE_NAME
from grpc_reflection.v1alpha.reflection import aio as library

from twinflow.cluster.gateway.grpc_door.endpoint import Endpoint

METHOD = "ServerReflectionInfo"


def reflection_endpoints(services: Iterable[str]) -> Mapping[str, Endpoint[Any, Any]]:
    """The reflection services, by path, describing `services` and themselves."""
    servicer = library.ReflectionServicer((*services, SERVICE_NAME))
    endpoint = Endpoint(pb.ServerReflectionRequest, servicer.ServerReflectionInfo)
    return {
        f"/grpc.reflection.{version}.ServerReflection/{METHOD}": endpoint
        for version in ("v1alpha", "v1")
    }
