"""Spans are decided once, carry no secret, and cost nothing when nobody looks; numbers have their fixed names."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from pydantic import SecretStr

from server.clock import SystemClock
from server.config import LogFormat, Logs, Settings, Tracing
from server.errors import ConfigError
from server.exporters import metric_reader, span_processor
from server.metrics import LATENCY_BOUNDS_SECONDS, MAX_LABEL_SETS, NAMES, Metrics
from server.rpc import Call, Code, Metadata
from server.telemetry import Telemetry

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
QUERY = "/qdrant.Points/Query"


class Stage:
    """Telemetry that keeps what it says."""

    def __init__(self, ratio: float = 1.0, log_format: LogFormat = LogFormat.JSON, level: str = "info") -> None:
        self.exporter = InMemorySpanExporter()
        self.stream = io.StringIO()
        settings = Settings(tracing=Tracing(sample_ratio=ratio), logs=Logs(format=log_format, level=level))
        self.telemetry = Telemetry.start(
            settings,
            clock=SystemClock(),
            environment={},
            stream=self.stream,
            tracing=SimpleSpanProcessor(self.exporter),
            redact=lambda text: text.replace("hunter2", "[gone]"),
        )

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.telemetry.close()


@pytest.fixture
def never() -> Iterator[Stage]:
    made = Stage(ratio=0.0)
    yield made
    made.telemetry.close()


def _call(traceparent: str = "", **more: str) -> Call:
    metadata: Metadata = tuple(more.items())
    return Call(QUERY, b"", metadata + ((("traceparent", traceparent),) if traceparent else ()))


# --- spans ---------------------------------------------------------------------------------------------------------


def test_a_moment_of_the_process_is_always_traced_and_shows_in_the_call_that_caused_it(
    stage: Stage, never: Stage
) -> None:
    never.telemetry.moment("state.changed", before="REMOTE", reason="hunter2 refused")
    alone = never.spans["state.changed"]
    assert alone.parent is None
    assert [event.name for event in alone.events] == ["state.changed"]
    assert dict(alone.events[0].attributes or {}) == {"before": "REMOTE", "reason": "[gone] refused"}
    with stage.telemetry.server_span(_call()):
        stage.telemetry.moment("state.changed", before="REMOTE")
    assert stage.spans["state.changed"].parent is None
    assert [event.name for event in stage.spans["qdrant.Points/Query"].events] == ["state.changed"]
    Telemetry.silent().moment("state.changed", before="REMOTE")


def test_a_call_and_its_parts_are_one_tree(stage: Stage) -> None:
    with (
        stage.telemetry.server_span(_call(SAMPLED, tracestate="a=b")) as root,
        stage.telemetry.span("wal.append", wal__seq=7) as child,
    ):
        assert stage.telemetry.current() is child
        assert stage.telemetry.traceparent() == child.ref
        assert root.is_recorded
    spans = stage.spans
    server, append = spans["qdrant.Points/Query"], spans["wal.append"]
    assert server.kind.name == "SERVER"
    assert server.parent is not None
    assert f"{server.parent.trace_id:032x}-{server.parent.span_id:016x}" in SAMPLED
    assert append.parent == server.context
    assert append.attributes == {"wal.seq": 7}
    assert server.attributes is not None
    assert server.attributes["rpc.method"] == "Query"
    assert stage.telemetry.traceparent() == ""


@pytest.mark.parametrize("traceparent", ["", "rubbish", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_without_a_caller_a_root_is_made(stage: Stage, traceparent: str) -> None:
    with stage.telemetry.server_span(_call(traceparent)) as span:
        assert span.ref.endswith(("-01", "-03"))
    assert stage.spans["qdrant.Points/Query"].parent is None


def test_the_caller_decides_before_the_ratio(stage: Stage, never: Stage) -> None:
    with stage.telemetry.server_span(_call(UNSAMPLED)) as span, stage.telemetry.span("inner") as inner:
        assert not span.is_recorded
        assert not inner.is_recorded
        assert stage.telemetry.traceparent() == ""
    assert stage.spans == {}
    with never.telemetry.server_span(_call(SAMPLED)):
        pass
    assert list(never.spans) == ["qdrant.Points/Query"]


def test_below_an_untraced_call_there_is_nothing(never: Stage) -> None:
    with never.telemetry.server_span(_call()) as root:
        inner = never.telemetry.span("router")
        with inner, never.telemetry.span("upstream", links=[SAMPLED]) as deepest:
            deepest.set(a=1)
            deepest.event("x")
            deepest.fail("y")
            assert not deepest.is_recorded
        assert never.telemetry.span("other") is inner, "no object is made"
        assert not root.is_recorded
    assert never.spans == {}


def test_after_an_untraced_call_the_next_decides_anew(never: Stage) -> None:
    with never.telemetry.server_span(_call()):
        pass
    with never.telemetry.server_span(_call(SAMPLED)):
        pass
    assert len(never.spans) == 1


def test_a_replay_is_linked_to_what_caused_it_whatever_the_ratio(never: Stage) -> None:
    with never.telemetry.span("replay", links=[SAMPLED, UNSAMPLED, "", "rubbish"]):
        pass
    (span,) = never.spans.values()
    assert span.parent is None
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [SAMPLED[3:35]] * 2


def test_a_parent_from_elsewhere(stage: Stage, never: Stage) -> None:
    with never.telemetry.span("apply", parent=SAMPLED):
        pass
    parent = never.spans["apply"].parent
    assert parent is not None
    assert f"{parent.span_id:016x}" in SAMPLED
    with stage.telemetry.span("apply", parent=UNSAMPLED) as span:
        assert not span.is_recorded


async def test_tasks_do_not_see_each_other(stage: Stage) -> None:
    met = asyncio.Barrier(2)

    async def one(name: str) -> None:
        with stage.telemetry.server_span(Call(f"/s/{name}", b"")) as span:
            await met.wait()
            assert stage.telemetry.current() is span
            with stage.telemetry.span(f"below {name}"):
                await met.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(one("a"))
        tasks.create_task(one("b"))
    for name in ("a", "b"):
        assert stage.spans[f"below {name}"].parent == stage.spans[f"s/{name}"].context


def test_a_failure_shows_by_name_and_never_by_text(stage: Stage) -> None:
    with pytest.raises(ValueError, match="payload"), stage.telemetry.span("parse"):
        raise ValueError("payload of a customer")
    span = stage.spans["parse"]
    assert span.status.status_code.name == "ERROR"
    assert span.attributes == {"error.type": "ValueError"}
    assert span.events == ()
    assert "customer" not in span.to_json()


def test_attributes_and_events_are_redacted_and_bounded(stage: Stage) -> None:
    with stage.telemetry.span("x", note="hunter2", long="y" * 10_000) as span:
        span.set(again="hunter2")
        span.event("moment", what="hunter2")
    shown = stage.spans["x"]
    assert "hunter2" not in shown.to_json()
    assert shown.attributes is not None
    assert len(str(shown.attributes["long"])) == 500


@given(trace_id=st.integers(1, 2**128 - 1), ratio=st.floats(0, 1))
def test_the_draw_is_the_rule_of_the_sdk(trace_id: int, ratio: float) -> None:
    """What we decide before there is a span is what ParentBased(TraceIdRatioBased) would decide for its trace id."""
    telemetry = Telemetry(tracing=None, sample_ratio=ratio, metrics=Metrics())
    seeded = random.getrandbits
    try:
        random.getrandbits = lambda _bits: trace_id
        drawn = telemetry._draw()
    finally:
        random.getrandbits = seeded
        telemetry.close()
    sdk = ParentBased(TraceIdRatioBased(ratio)).should_sample(None, trace_id, "x")
    assert (drawn == trace_id) == sdk.decision.is_sampled()


def test_a_sampled_root_keeps_the_id_that_was_drawn(stage: Stage) -> None:
    ids = set()
    for _ in range(20):
        with stage.telemetry.server_span(_call()) as span:
            ids.add(span.ref[3:35])
    assert len(ids) == 20


def test_silent_telemetry_counts_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    telemetry = Telemetry.silent()
    with telemetry.server_span(_call(SAMPLED)) as span, telemetry.span("x") as inner:
        assert not span.is_recorded
        assert inner is span
    telemetry.log.error("nobody hears this", exc_info=True)
    telemetry.metrics.state(2)
    assert b"fallback_state 2.0" in telemetry.metrics.prometheus()
    telemetry.close()
    assert capfd.readouterr() == ("", "")


def test_tracing_can_be_switched_off() -> None:
    exporter = InMemorySpanExporter()
    settings = Settings(tracing=Tracing(enabled=False))
    telemetry = Telemetry.start(
        settings, clock=SystemClock(), environment={}, stream=io.StringIO(), tracing=SimpleSpanProcessor(exporter)
    )
    with telemetry.server_span(_call(SAMPLED)) as span:
        assert not span.is_recorded
    telemetry.close()


# --- where things go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:1"},
    ],
)
def test_spans_stay_here(environment: dict[str, str]) -> None:
    assert span_processor(environment) is None


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
        {"OTEL_TRACES_EXPORTER": "console"},
    ],
)
def test_spans_go_out(environment: dict[str, str]) -> None:
    processor = span_processor(environment)
    assert isinstance(processor, BatchSpanProcessor)
    processor.shutdown()


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_METRICS_EXPORTER", "statsd"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke")],
)
def test_an_exporter_that_is_not_there_is_refused(name: str, value: str) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", name: value}
    with pytest.raises(ConfigError, match=value):
        span_processor(environment)
        metric_reader(environment)


def test_numbers_stay_here_unless_asked_for() -> None:
    assert metric_reader({}) is None
    assert metric_reader({"OTEL_METRICS_EXPORTER": "prometheus"}) is None


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_line_leads_to_its_trace(stage: Stage) -> None:
    with stage.telemetry.server_span(_call(SAMPLED)) as span:
        stage.telemetry.log.info("inside", seq=3)
    stage.telemetry.log.info("outside")
    inside, outside = stage.lines
    assert (inside["trace_id"], inside["span_id"]) == tuple(span.ref.split("-")[1:3])
    assert (inside["event"], inside["seq"], inside["level"]) == ("inside", 3, "info")
    assert "trace_id" not in outside


def test_lines_hide_secrets(stage: Stage) -> None:
    stage.telemetry.log.info("x", api_key="sesame", Authorization="sesame", key=SecretStr("sesame"), text="is hunter2")
    try:
        raise ValueError("hunter2")
    except ValueError:
        stage.telemetry.log.exception("boom hunter2")
    text = stage.stream.getvalue()
    assert "sesame" not in text
    assert "hunter2" not in text
    assert "ValueError: [gone]" in text
    assert "Traceback" in text


def test_long_texts_are_cut(stage: Stage) -> None:
    stage.telemetry.log.info("x", text="y" * 100_000)
    assert len(stage.stream.getvalue()) < 3000


def test_lines_below_the_level_are_not_written() -> None:
    quiet = Stage(level="warning")
    quiet.telemetry.log.info("no")
    quiet.telemetry.log.warning("yes")
    quiet.telemetry.close()
    assert [line["event"] for line in quiet.lines] == ["yes"]


def test_lines_for_people() -> None:
    people = Stage(log_format=LogFormat.CONSOLE)
    people.telemetry.log.warning("hello", seq=3)
    people.telemetry.close()
    assert "hello" in people.stream.getvalue()
    assert "seq=3" in people.stream.getvalue()


def test_lines_of_other_libraries_come_in_until_we_close(stage: Stage) -> None:
    logging.getLogger("elsewhere").warning("it is %s", "late")
    logging.getLogger("elsewhere").info("not shown")
    stage.telemetry.close()
    logging.getLogger("elsewhere").warning("afterwards")
    assert [(line["event"], line["library"]) for line in stage.lines] == [("it is late", "elsewhere")]


# --- numbers ---------------------------------------------------------------------------------------------------------


def _samples(metrics: Metrics) -> dict[str, float]:
    lines = metrics.prometheus().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def _types(metrics: Metrics) -> dict[str, str]:
    lines = metrics.prometheus().decode().splitlines()
    return {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}


def _everything(metrics: Metrics) -> None:
    metrics.state(1)
    metrics.wal_entries("pending", 5)
    metrics.sync_duration(2.0)
    metrics.sync_error("transient")
    metrics.health_check("ok")
    metrics.request_started()
    metrics.request(QUERY, "remote", Code.OK, 0.003)
    metrics.redactions(2)
    metrics.upstream_up(True)
    metrics.breaker("half_open")
    metrics.replica_restart()
    metrics.mirror_lag(3)
    metrics.quarantine(1)
    metrics.hydration("c", 10, 20)
    metrics.wal(100, 1.5, False)
    metrics.loop_lag(0.01)


def test_names_are_exactly_those_promised() -> None:
    metrics = Metrics()
    _everything(metrics)
    counters = {name.removesuffix("_total"): name for name in NAMES}
    shown = {counters.get(name, name) for name in _types(metrics) if not name.startswith("process_")}
    assert shown == set(NAMES)
    samples = _samples(metrics)
    assert samples["fallback_state"] == 1
    assert samples['fallback_wal_entries{state="pending"}'] == 5
    assert samples["fallback_sync_errors_total"] == 1
    assert samples['fallback_health_checks_total{result="ok"}'] == 1
    assert samples["fallback_sync_duration_seconds_sum"] == 2
    assert samples['fallback_sync_duration_seconds_bucket{le="5.0"}'] == 1
    assert samples["understudy_breaker_open"] == 0.5
    assert not [name for name in samples if "_total_total" in name or "otel_" in name or "target_info" in name]
    metrics.close()


def test_types_are_those_promised() -> None:
    metrics = Metrics()
    _everything(metrics)
    types = _types(metrics)
    assert types["fallback_state"] == types["fallback_wal_entries"] == "gauge"
    assert types["fallback_sync_duration_seconds"] == "histogram"
    assert types["fallback_sync_errors_total"] == types["fallback_health_checks_total"] == "counter"
    metrics.close()


def test_the_fixed_names_are_there_from_the_start() -> None:
    metrics = Metrics()
    samples = _samples(metrics)
    for name in ("fallback_state", "fallback_sync_errors_total", 'fallback_wal_entries{state="synced"}'):
        assert samples[name] == 0
    metrics.close()


def test_two_in_one_process_do_not_mix() -> None:
    one, two = Metrics(), Metrics()
    one.state(2)
    assert _samples(two)["fallback_state"] == 0
    one.close()
    two.close()


@given(st.lists(st.floats(0, 20), max_size=30))
def test_latency_buckets_are_cumulative(times: list[float]) -> None:
    metrics = Metrics()
    for seconds in times:
        metrics.request_started()
        metrics.request(QUERY, "local", Code.OK, seconds)
    samples = _samples(metrics)
    for bound in LATENCY_BOUNDS_SECONDS if times else ():
        name = f'understudy_request_duration_bucket_total{{le="{bound}",source="local"}}'
        assert samples[name] == sum(seconds <= bound for seconds in times)
    assert samples["understudy_requests_in_flight"] == 0
    metrics.close()


def test_labels_from_outside_are_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_LABEL_SETS + 50):
        metrics.request_started()
        metrics.request(f"/made.Up/{number}", "remote", Code.OK, 0)
        metrics.hydration(f"collection {number}", 1, 1)
    samples = _samples(metrics)
    assert samples['understudy_requests_total{code="OK",method="other",source="remote"}'] == MAX_LABEL_SETS + 50
    assert sum(name.startswith("understudy_hydration_points") for name in samples) == MAX_LABEL_SETS + 1
    metrics.close()


def test_a_collection_that_is_gone_shows_no_more() -> None:
    metrics = Metrics()
    metrics.hydration("c", 1, 2)
    metrics.hydration_gone("c")
    assert not [name for name in _samples(metrics) if "hydration" in name]
    metrics.close()
