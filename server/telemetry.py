"""Spans, metrics and log lines, from one object that is passed along.

Promises: whether a call is traced is decided once, at its server span, by what the caller decided or else by the sample
ratio; spans below an untraced one cost next to nothing, and so does everything when no exporter is set. Spans go where
the standard OTEL_* variables say. Neither spans nor lines carry payloads, keys or the text of foreign exceptions.
Does not promise delivery: spans are dropped when the collector cannot keep up (OpenTelemetry's bounded queue).
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Final, Protocol, TextIO, TypeAlias

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from server.clock import Clock
from server.config import Settings
from server.exporters import metric_reader, span_processor
from server.logs import ForeignLines, Message, build_logger, discard_logger
from server.metrics import Metrics
from server.rpc import Call

__all__ = ["Message", "Metrics", "Span", "SpanRef", "Telemetry"]

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
_CARRIED: Final = frozenset((TRACEPARENT, TRACESTATE))
MAX_ATTRIBUTE_CHARS: Final = 500

# A W3C traceparent: how a span is named outside its process and in the log.
SpanRef: TypeAlias = str
Attribute: TypeAlias = str | bool | int | float

_PROPAGATOR = TraceContextTextMapPropagator()
_CURRENT: ContextVar[_Recorded | _Silent | None] = ContextVar("understudy_span", default=None)


class Span(Protocol):
    """One piece of work. Enter it with `with`; an exception that leaves it marks it failed."""

    def __enter__(self) -> Span: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def is_recorded(self) -> bool:
        """Whether anyone will see it: ask before computing costly attributes."""
        ...

    @property
    def ref(self) -> SpanRef:
        """Its traceparent; "" when it is not recorded."""
        ...

    def set(self, **attributes: Attribute) -> None:
        """Add attributes."""
        ...

    def event(self, name: str, **attributes: Attribute) -> None:
        """Note a moment."""
        ...

    def fail(self, reason: str) -> None:
        """Mark it failed; `reason` is a fixed word, never text of the caller."""
        ...


class _Silent:
    """A span that nobody sees; one object serves all. As a root it also silences what comes below it."""

    __slots__ = ()
    is_recorded = False
    ref = ""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def set(self, **attributes: Attribute) -> None:
        """See Span."""

    def event(self, name: str, **attributes: Attribute) -> None:
        """See Span."""

    def fail(self, reason: str) -> None:
        """See Span."""


_SILENT: Final = _Silent()


class _Unsampled(_Silent):
    """The root of an untraced call: while it is entered, spans below it are silent."""

    __slots__ = ("_token",)
    _token: Token[_Recorded | _Silent | None]

    def __enter__(self) -> _Unsampled:
        self._token = _CURRENT.set(_SILENT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _CURRENT.reset(self._token)


class _Recorded:
    """A span of the SDK. It starts when it is entered."""

    __slots__ = ("_redact", "_span", "_start", "_token")
    is_recorded = True

    def __init__(self, start: Callable[[], trace.Span], redact: Callable[[str], str]) -> None:
        self._start = start
        self._redact = redact
        self._span: trace.Span = trace.INVALID_SPAN
        self._token: Token[_Recorded | _Silent | None] | None = None

    def __enter__(self) -> _Recorded:
        self._span = self._start()
        self._token = _CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        if kind is not None:
            # Its name only: the text of an exception may quote a payload.
            self.fail(kind.__name__)
        self._span.end()
        if self._token is not None:
            _CURRENT.reset(self._token)
            self._token = None

    @property
    def ref(self) -> SpanRef:
        """See Span."""
        here = self._span.get_span_context()
        return f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}" if here.is_valid else ""

    @property
    def ids(self) -> tuple[str, str]:
        """Trace id and span id, in hexadecimal."""
        here = self._span.get_span_context()
        return f"{here.trace_id:032x}", f"{here.span_id:016x}"

    @property
    def context(self) -> Context:
        """What a child starts from."""
        return trace.set_span_in_context(self._span, Context())

    def set(self, **attributes: Attribute) -> None:
        """See Span."""
        for key, value in attributes.items():
            self._span.set_attribute(_name(key), _plain(value, self._redact))

    def event(self, name: str, **attributes: Attribute) -> None:
        """See Span."""
        self._span.add_event(name, {_name(key): _plain(value, self._redact) for key, value in attributes.items()})

    def fail(self, reason: str) -> None:
        """See Span."""
        self._span.set_attribute("error.type", reason)
        self._span.set_status(trace.StatusCode.ERROR, reason)


class _DrawnIds(RandomIdGenerator, threading.local):
    """Trace ids that were drawn before the span: the draw decides whether there is a span at all."""

    drawn: int | None = None

    def generate_trace_id(self) -> int:
        """The drawn id once, then random ones."""
        drawn, self.drawn = self.drawn, None
        return drawn if drawn is not None else super().generate_trace_id()


class Telemetry:
    """What every part gets to speak through: `span`, `server_span`, `log`, `metrics`."""

    def __init__(
        self,
        *,
        tracing: SpanProcessor | None,
        sample_ratio: float,
        metrics: Metrics,
        resource: Resource | None = None,
        redact: Callable[[str], str] = str,
    ) -> None:
        self.metrics = metrics
        self.log: FilteringBoundLogger = discard_logger()
        self._redact = redact
        self._foreign: ForeignLines | None = None
        self._ids = _DrawnIds()
        self._bound = TraceIdRatioBased.get_bound_for_rate(sample_ratio)
        self._provider: TracerProvider | None = None
        self._tracer: trace.Tracer | None = None
        if tracing is not None:
            # The decision is taken below, by the rule of ParentBased(TraceIdRatioBased), before any span exists.
            self._provider = TracerProvider(
                sampler=ALWAYS_ON,
                resource=resource,
                id_generator=self._ids,
                shutdown_on_exit=False,
            )
            self._provider.add_span_processor(tracing)
            self._tracer = self._provider.get_tracer("understudy")

    @classmethod
    def start(
        cls,
        settings: Settings,
        *,
        clock: Clock,
        environment: Mapping[str, str] | None = None,
        stream: TextIO | None = None,
        tracing: SpanProcessor | None = None,
        redact: Callable[[str], str] = str,
        version: str = "",
    ) -> Telemetry:
        """Telemetry as the settings and the OTEL_* variables of `environment` (the process's by default) ask for.

        `redact` is applied to every text in lines and attributes. `tracing` replaces the exporter of the environment.
        Raises ConfigError for an exporter or protocol that is not there.
        """
        del clock  # OpenTelemetry and structlog stamp with the system's wall clock; spans are compared across machines.
        variables = os.environ if environment is None else environment
        resource = Resource.create({SERVICE_NAME: variables.get("OTEL_SERVICE_NAME", "understudy")})
        if version:
            resource = resource.merge(Resource({SERVICE_VERSION: version}))
        processor = tracing or span_processor(variables)
        reader = metric_reader(variables)
        self = cls(
            tracing=processor if settings.tracing.enabled else None,
            sample_ratio=settings.tracing.sample_ratio,
            metrics=Metrics([reader] if reader else [], resource),
            resource=resource,
            redact=redact,
        )
        self.log = build_logger(settings.logs, stream=stream or sys.stderr, redact=redact, trace=_add_ids)
        self._foreign = ForeignLines(self.log)
        self._foreign.install()
        return self

    @staticmethod
    def silent(clock: Clock | None = None) -> Telemetry:
        """Counts, but shows nothing: for tests and one-shot commands."""
        del clock
        return Telemetry(tracing=None, sample_ratio=0.0, metrics=Metrics())

    def server_span(self, call: Call) -> Span:
        """The root of one call from a client: decides whether the call is traced."""
        if self._tracer is None:
            return _SILENT
        context, caller, drawn = Context(), trace.INVALID_SPAN_CONTEXT, None
        carrier = {key: value for key, value in call.metadata if key in _CARRIED and isinstance(value, str)}
        if carrier:
            context = _PROPAGATOR.extract(carrier, context)
            caller = trace.get_current_span(context).get_span_context()
        if not caller.is_valid:
            drawn = self._draw()
        if drawn is None and not caller.trace_flags.sampled:
            return _Unsampled()
        name = call.method.removeprefix("/")
        service, _, method = name.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        return self._recorded(self._tracer, name, context, attributes, (), kind=trace.SpanKind.SERVER, drawn=drawn)

    def span(
        self, name: str, /, *, parent: SpanRef | None = None, links: Sequence[SpanRef] = (), **attributes: Attribute
    ) -> Span:
        """A piece of work below the current span, or below `parent` (a traceparent).

        Without either it is a root, traced by the sample ratio, or always when one of `links` was. In attribute names
        `__` stands for a dot: `wal__seq=3` → `wal.seq`.
        """
        if self._tracer is None:
            return _SILENT
        if parent:
            context = _PROPAGATOR.extract({TRACEPARENT: parent}, Context())
            caller = trace.get_current_span(context).get_span_context()
            if caller.is_valid:
                if not caller.trace_flags.sampled:
                    return _Unsampled()
                return self._recorded(self._tracer, name, context, attributes, links, kind=trace.SpanKind.INTERNAL)
        here = _CURRENT.get()
        if here is None:
            drawn = self._draw(links)
            if drawn is None:
                return _Unsampled()
            return self._recorded(
                self._tracer, name, Context(), attributes, links, kind=trace.SpanKind.INTERNAL, drawn=drawn
            )
        if isinstance(here, _Silent):
            return _SILENT
        return self._recorded(self._tracer, name, here.context, attributes, links, kind=trace.SpanKind.INTERNAL)

    def moment(self, name: str, /, **attributes: Attribute) -> None:
        """A rare moment of the process: an event of the current span, and a span of its own that is always traced."""
        self.current().event(name, **attributes)
        if self._tracer is None:
            return
        drawn = random.getrandbits(128) or 1
        kind = trace.SpanKind.INTERNAL
        with self._recorded(self._tracer, name, Context(), attributes, (), kind=kind, drawn=drawn) as span:
            span.event(name, **attributes)

    def current(self) -> Span:
        """The span that is entered here; a silent one when there is none."""
        return _CURRENT.get() or _SILENT

    def traceparent(self) -> SpanRef:
        """The current span for other processes and for the log; "" when the call is not traced."""
        here = _CURRENT.get()
        return "" if here is None else here.ref

    def close(self) -> None:
        """Send what is left and give everything back."""
        if self._foreign is not None:
            self._foreign.remove()
            self._foreign = None
        if self._provider is not None:
            self._provider.shutdown()
            self._provider = None
            self._tracer = None
        self.metrics.close()

    def _draw(self, links: Sequence[SpanRef] = ()) -> int | None:
        """A trace id for a new root, or None when it is not to be traced."""
        drawn = random.getrandbits(128) or 1
        if drawn & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound or any(map(_is_sampled, links)):
            return drawn
        return None

    def _recorded(
        self,
        tracer: trace.Tracer,
        name: str,
        context: Context,
        attributes: Mapping[str, Attribute],
        links: Sequence[SpanRef],
        *,
        kind: trace.SpanKind,
        drawn: int | None = None,
    ) -> Span:
        plain = {_name(key): _plain(value, self._redact) for key, value in attributes.items()}

        def start() -> trace.Span:
            self._ids.drawn = drawn
            return tracer.start_span(name, context, kind, plain, _links(links))

        return _Recorded(start, self._redact)


def _add_ids(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The ids of the current span, so that a line leads to its trace."""
    here = _CURRENT.get()
    if isinstance(here, _Recorded):
        event["trace_id"], event["span_id"] = here.ids
    return event


def _caller(ref: SpanRef) -> trace.SpanContext:
    context = _PROPAGATOR.extract({TRACEPARENT: ref}, Context())
    return trace.get_current_span(context).get_span_context()


def _is_sampled(ref: SpanRef) -> bool:
    return bool(_caller(ref).trace_flags.sampled)


def _links(refs: Sequence[SpanRef]) -> list[trace.Link]:
    callers = (_caller(ref) for ref in refs if ref)
    return [trace.Link(caller) for caller in callers if caller.is_valid]


def _name(key: str) -> str:
    return key.replace("__", ".")


def _plain(value: Attribute, redact: Callable[[str], str]) -> Attribute:
    return redact(value)[:MAX_ATTRIBUTE_CHARS] if isinstance(value, str) else value
