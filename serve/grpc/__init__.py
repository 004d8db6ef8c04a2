"""The Open Inference Protocol over gRPC: ``inference.GRPCInferenceService``, health and reflection.

A ``grpc.aio`` server on the event loop of each replica, so that a request reaches the model without a hop.
``messages`` turns protobuf into tensors and back, ``servicer`` answers the service's methods, ``health`` the
two services beside it, ``edge`` turns errors into statuses, ``server`` listens. Which version answers, who
may ask and how a model is described are asked of the objects in ``contract``; neither Ray nor HTTP is known.
"""

from serve.grpc.server import GrpcServer, start_server

__all__ = ["GrpcServer", "start_server"]
