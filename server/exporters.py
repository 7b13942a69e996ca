"""Where spans and numbers go, as the standard OTEL_* variables say.

Promises: without an endpoint or an exporter named, nothing leaves the process. Honoured here: OTEL_SDK_DISABLED,
OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER (otlp, console, none; metrics also prometheus, which is always on),
OTEL_EXPORTER_OTLP_ENDPOINT / _TRACES_ENDPOINT / _METRICS_ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL and its two variants;
every other OTEL_EXPORTER_OTLP_* variable by OpenTelemetry itself. Exporters are imported only when one is wanted.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from server.errors import ConfigError

_PACKAGES: Final[Mapping[str, str]] = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http",
}


def span_processor(environment: Mapping[str, str]) -> SpanProcessor | None:
    """What takes finished spans; None when nobody wants them. Raises ConfigError."""
    match _choice(environment, "TRACES"):
        case "otlp":
            return BatchSpanProcessor(_otlp(environment, "TRACES", "trace_exporter", "OTLPSpanExporter"))
        case "console":
            return BatchSpanProcessor(ConsoleSpanExporter(out=sys.stderr))
    return None


def metric_reader(environment: Mapping[str, str]) -> MetricReader | None:
    """What pushes numbers out, beside `/metrics`; None when nobody wants it. Raises ConfigError."""
    match _choice(environment, "METRICS"):
        case "otlp":
            exporter = _otlp(environment, "METRICS", "metric_exporter", "OTLPMetricExporter")
            return PeriodicExportingMetricReader(exporter)
        case "console":
            return PeriodicExportingMetricReader(ConsoleMetricExporter(out=sys.stderr))
    return None


def _choice(environment: Mapping[str, str], signal: str) -> str:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return "none"
    variable = f"OTEL_{signal}_EXPORTER"
    named = environment.get(variable, "").strip().lower()
    known = ("otlp", "console", "none") + (("prometheus",) if signal == "METRICS" else ())
    if named and named not in known:
        raise ConfigError(f"{variable}={named} is not known", hint=f"Use one of: {', '.join(known)}")
    if named:
        return named
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return "otlp" if any(environment.get(name) for name in endpoints) else "none"


def _otlp(environment: Mapping[str, str], signal: str, module: str, name: str) -> Any:
    variable = f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"
    if not environment.get(variable):
        variable = "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = environment.get(variable) or "grpc"
    if protocol not in _PACKAGES:
        raise ConfigError(f"{variable}={protocol} is not known", hint=f"Use one of: {', '.join(_PACKAGES)}")
    return getattr(importlib.import_module(f"{_PACKAGES[protocol]}.{module}"), name)()
