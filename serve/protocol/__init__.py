"""The protocols of an endpoint: bytes to requests and answers to bytes.

The Open Inference Protocol v2 (``rest``, ``binary``, ``metadata``), rows (``rows``), the errors of both
(``failures``) and their description (``openapi``, ``docs``). Bytes in, bytes out: it opens no socket, waits
for nothing, runs no model and knows neither Ray nor ASGI.
"""

from kit.inference.card import Card, Reply
from kit.inference.failures import encode_error
from kit.inference.health import describe_live, describe_model_ready, describe_ready, describe_server
from kit.inference.metadata import describe_model
from kit.inference.paths import ACTIONS, OPEN_KINDS, Kind, Paths, Route, read_header_length
from kit.inference.request import InferRequest, RawRequest, Requested, priority_of, timeout_s_of
from kit.inference.rest import encode_answer, parse_infer
from serve.protocol.docs import docs_page
from serve.protocol.metadata import (
    Indexed,
    describe_config,
    describe_index,
    describe_statistics,
    read_index,
    read_repository,
)
from serve.protocol.openapi import describe_openapi
from serve.protocol.rows import encode_rows, parse_rows

__all__ = [
    "ACTIONS",
    "OPEN_KINDS",
    "Card",
    "Indexed",
    "InferRequest",
    "Kind",
    "Paths",
    "RawRequest",
    "Reply",
    "Requested",
    "Route",
    "describe_config",
    "describe_index",
    "describe_live",
    "describe_model",
    "describe_model_ready",
    "describe_openapi",
    "describe_ready",
    "describe_server",
    "describe_statistics",
    "docs_page",
    "encode_answer",
    "encode_error",
    "encode_rows",
    "parse_infer",
    "parse_rows",
    "priority_of",
    "read_header_length",
    "read_index",
    "read_repository",
    "timeout_s_of",
]
