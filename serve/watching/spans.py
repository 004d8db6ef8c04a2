"""Recorded requests as OpenTelemetry spans on their way to a collector: the part that needs the SDK.

Sent in batches from the SDK's thread, over OTLP with protobuf. The exporter reads OpenTelemetry's own
variables for what is no setting here, such as ``OTEL_EXPORTER_OTLP_HEADERS`` for a collector that asks for a
key.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from kit import __version__
from serve.watching.outcomes import FAILED
from serve.watching.tracing import Parent, Trace

_SEND_EVERY_MS = 2000
_SEND_TIMEOUT_S = 5.0
_MOST_WAITING = 4096
_TALKATIVE = ("opentelemetry.exporter", "opentelemetry.sdk")


class Spans:
    """The way to one collector.

    Args:
        endpoint: Its address, without the path.
        replica: The replica's name, which every span carries.
    """

    def __init__(self, endpoint: str, *, replica: str) -> None:
        for name in _TALKATIVE:  # a collector that is away is counted, not written about again and again
            logging.getLogger(name).setLevel(logging.CRITICAL)
        url = f"{endpoint.rstrip('/')}/v1/traces"
        self._exporter = _Counting(OTLPSpanExporter(endpoint=url, timeout=_SEND_TIMEOUT_S))
        about = {"service.name": "kit", "service.version": __version__, "service.instance.id": replica}
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource(about), shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter, max_queue_size=_MOST_WAITING, schedule_delay_millis=_SEND_EVERY_MS
            )
        )
        self._tracer = self._provider.get_tracer("kit.serve", __version__)
        self._added = self._overflown = 0

    @property
    def dropped(self) -> int:
        """Spans there was no room for, or the collector did not take."""
        return self._overflown + self._exporter.dropped

    def add(self, trace: Trace, *, name: str, outcome: str, about: Mapping[str, str | int | float]) -> None:
        """Make a request's spans; see ``Tracing.end``."""
        n_spans = 1 + len(trace.stages)
        if self._added + n_spans - self._exporter.seen > _MOST_WAITING:
            self._overflown += n_spans
            return
        self._added += n_spans
        span = self._tracer.start_span(
            name,
            context=_context(trace.parent),
            kind=SpanKind.SERVER,
            attributes={**about, "kit.outcome": outcome},
            start_time=trace.started_ns,
        )
        if outcome in FAILED:
            span.set_status(Status(StatusCode.ERROR, outcome))
        within = set_span_in_context(span, Context())
        for stage, started_ns, ended_ns in trace.stages:
            self._tracer.start_span(stage, context=within, start_time=started_ns).end(ended_ns)
        span.end(time.time_ns())

    def close(self) -> None:
        """Send what waits, and end; a collector that is away is not waited for longer than one try takes."""
        ending = threading.Thread(target=self._provider.shutdown, name="kit-spans-end", daemon=True)
        ending.start()
        ending.join(timeout=_SEND_TIMEOUT_S)


class _Counting(SpanExporter):
    """Counts what the collector did not take."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.seen = self.dropped = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self.dropped += len(spans)
        self.seen += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _context(parent: Parent | None) -> Context:
    """Make the SDK's idea of a caller's span."""
    if parent is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED)
    span = SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(span), Context())
