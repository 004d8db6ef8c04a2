"""Traces: who decides about them, what reaches a collector, and that a missing one matters to nobody."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from kit.settings.serving import TracingSettings
from serve.watching.tracing import Parent, Tracing, read_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-{SPAN}-{flags}".encode() for flags in ("01", "00"))


class Collector(ThreadingHTTPServer):
    """An OTLP receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = ExportTraceServiceRequest()
                message.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
                collector.requests.append((self.path, message))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def spans(self) -> dict[str, Span]:
        """All spans, by name."""
        return {
            span.name: span
            for _, message in self.requests
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def tracing(collector: Collector, *, share: float = 1.0) -> Tracing:
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    return Tracing(TracingSettings(endpoint=endpoint, share=share), replica="r1")


def test_a_recorded_request_reaches_the_collector_below_its_callers_span(collector: Collector) -> None:
    tracer = tracing(collector)
    trace = tracer.begin(SAMPLED)
    assert trace is not None
    began = trace.started_ns
    trace.stage("queue", started_ns=began, ended_ns=began + 10)
    trace.stage("engine", started_ns=began + 10, ended_ns=began + 30)
    tracer.end(trace, name="infer digits", outcome="ok", about={"kit.model": "digits", "kit.rows": 4})
    tracer.close()
    spans = collector.spans
    request, engine = spans["infer digits"], spans["engine"]
    assert [path for path, _ in collector.requests] == ["/v1/traces"]
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert request.parent_span_id.hex() == SPAN
    assert engine.parent_span_id == spans["queue"].parent_span_id == request.span_id
    assert (engine.start_time_unix_nano, engine.end_time_unix_nano) == (began + 10, began + 30)
    assert request.kind == Span.SPAN_KIND_SERVER
    said = {each.key: each.value for each in request.attributes}
    assert (said["kit.model"].string_value, said["kit.rows"].int_value) == ("digits", 4)
    about = collector.requests[0][1].resource_spans[0].resource.attributes
    assert {each.key: each.value.string_value for each in about}["service.instance.id"] == "r1"
    assert tracer.dropped == 0


@pytest.mark.parametrize("outcome, code", [("model", Status.STATUS_CODE_ERROR), ("invalid", 0), ("ok", 0)])
def test_only_what_the_client_could_not_help_is_an_error(
    collector: Collector, outcome: str, code: int
) -> None:
    tracer = tracing(collector)
    trace = tracer.begin(None)
    assert trace is not None
    tracer.end(trace, name="infer digits", outcome=outcome, about={})
    tracer.close()
    span = collector.spans["infer digits"]
    assert span.status.code == code
    assert span.parent_span_id == b""


def test_the_callers_decision_counts_and_without_one_a_coin(collector: Collector) -> None:
    always, rarely = tracing(collector), tracing(collector, share=1e-9)
    assert always.begin(UNSAMPLED) is None
    assert rarely.begin(SAMPLED) is not None
    assert rarely.begin(None) is None
    assert always.begin(b"nonsense") is not None
    for each in (always, rarely):
        each.close()


def test_a_collector_that_is_away_costs_spans_alone() -> None:
    with Collector() as closed:
        port = closed.server_port
    tracer = Tracing(TracingSettings(endpoint=f"http://127.0.0.1:{port}", share=1.0), replica="r1")
    trace = tracer.begin(None)
    assert trace is not None
    for _ in range(5000):
        tracer.end(trace, name="infer digits", outcome="ok", about={})
    assert tracer.dropped >= 5000 - 4096


@pytest.mark.parametrize(
    "value, parent",
    [
        (SAMPLED, Parent(int(TRACE, 16), int(SPAN, 16), True)),
        (UNSAMPLED, Parent(int(TRACE, 16), int(SPAN, 16), False)),
        (f"01-{TRACE}-{SPAN}-03-more".encode(), Parent(int(TRACE, 16), int(SPAN, 16), True)),
        (f"00-{TRACE}-{SPAN}-01-more".encode(), None),
        (f"ff-{TRACE}-{SPAN}-01".encode(), None),
        (f"00-{'0' * 32}-{SPAN}-01".encode(), None),
        (f"00-{TRACE}-{'0' * 16}-01".encode(), None),
        (f"00-{TRACE.upper()}-{SPAN}-01".encode(), None),
        (SAMPLED + b"\n", None),
        (b"", None),
    ],
)
def test_a_traceparent_is_read_as_the_standard_says(value: bytes, parent: Parent | None) -> None:
    assert read_traceparent(value) == parent


def test_without_traces_the_sdk_is_not_even_imported() -> None:
    code = "import sys, serve.watching.tracing; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "serve.watching.tracing" in done.stdout.split()
    assert not [name for name in done.stdout.split() if name.startswith("opentelemetry")]
