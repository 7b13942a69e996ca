"""Numbers for operators: the five fixed metrics of the design and what is needed beyond them.

Promises: `/metrics` shows exactly the names in `NAMES`, beside the process's own numbers; what has no labels or known
ones is there from the start, at zero, but histograms, which come with their first value. Counting is cheap on the path
of a call: values are plain numbers, OpenTelemetry reads them when it is asked. Does not promise to keep numbers across
a restart; they start again at zero.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Histogram, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from server.rpc import METHODS, Code

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# Upper bounds of a call's time, in seconds.
LATENCY_BOUNDS_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SYNC_BOUNDS_SECONDS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0)

# Most different label sets of one metric: what comes later is counted under "other".
MAX_LABEL_SETS: Final = 1000

# Name → what it says. The first five are fixed in the design.
NAMES: Final[Mapping[str, str]] = {
    "fallback_state": "0 = remote, 1 = local, 2 = draining",
    "fallback_wal_entries": "Entries in the log, by state: pending or synced",
    "fallback_sync_duration_seconds": "Time from the start of a sync until nothing was pending",
    "fallback_sync_errors_total": "Replayed entries that Qdrant did not take",
    "fallback_health_checks_total": "Probes of Qdrant, by result: ok, failed, ignored (we were late ourselves)",
    "understudy_sync_errors_by_kind_total": "The same, by kind: transient, permanent, auth",
    "understudy_requests_total": "Calls answered, by method, source (remote, local, none) and gRPC status code",
    "understudy_request_seconds_total": "Time spent on calls, by source",
    "understudy_request_duration_bucket_total": "Calls within `le` seconds, by source (for histogram_quantile)",
    "understudy_requests_in_flight": "Calls being answered right now",
    "understudy_upstream_up": "1 when Qdrant counts as up",
    "understudy_breaker_open": "0 = closed, 1 = open, 0.5 = half-open",
    "understudy_replica_restarts_total": "Times the replica process was started again",
    "understudy_mirror_lag_entries": "Log entries that the replica has not applied yet",
    "understudy_quarantine_entries": "Entries that Qdrant refused, waiting for an operator",
    "understudy_conflicts_total": "Pending writes to points that others changed, by outcome: overwritten, not_written, "
    "quarantined; unknown = nobody can tell",
    "understudy_conflict_rows_dropped_total": "Rows that the conflict log had no room for any more",
    "understudy_hydration_points": "Points of a collection that the replica holds",
    "understudy_hydration_expected_points": "Points of a collection that Qdrant reported",
    "understudy_restored_points_total": "Points that Qdrant had acknowledged and lost, sent to it again",
    "understudy_repaired_points_total": "Points of the replica that differed from Qdrant's and were brought in anew",
    "understudy_wal_bytes": "Size of the log on disk",
    "understudy_wal_oldest_pending_seconds": "Age of the oldest pending entry; 0 when there is none",
    "understudy_wal_latched": "1 when the log takes no writes until it is reopened",
    "understudy_wal_damaged_segments": "Closed segments of the log in which the patrol found damage",
    "understudy_redactions_total": "Secrets cut out of what clients sent, before the disk saw them",
    "understudy_loop_lag_seconds": "How late the event loop last ran",
}

Labels = tuple[str, ...]


class _Series:
    """One metric's numbers by label values; increments are exact across threads."""

    def __init__(self, names: Labels) -> None:
        self.names = names
        self._values: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def set(self, labels: Labels, value: float) -> None:
        with self._lock:
            self._values[self._bounded(labels)] = value

    def add(self, labels: Labels, amount: float = 1) -> None:
        with self._lock:
            key = self._bounded(labels)
            self._values[key] = self._values.get(key, 0) + amount

    def drop(self, labels: Labels) -> None:
        with self._lock:
            self._values.pop(labels, None)

    def get(self, labels: Labels) -> float:
        with self._lock:
            return self._values.get(labels, 0)

    def observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            values = dict(self._values)
        return [Observation(value, dict(zip(self.names, labels, strict=True))) for labels, value in values.items()]

    def _bounded(self, labels: Labels) -> Labels:
        if labels in self._values or len(self._values) < MAX_LABEL_SETS:
            return labels
        return ("other",) * len(labels)


class _Calls:
    """Numbers of calls, written by one thread without a lock: this is on the path of every call."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._counts: dict[tuple[str, str, Code], int] = {}
        self._seconds: dict[str, float] = {}
        self._buckets: dict[str, list[int]] = {}
        self.observers: Mapping[str, Callable[[CallbackOptions], Iterable[Observation]]] = {
            "understudy_requests_in_flight": lambda _: [Observation(self.in_flight)],
            "understudy_requests_total": self._observe_counts,
            "understudy_request_seconds_total": self._observe_seconds,
            "understudy_request_duration_bucket_total": self._observe_buckets,
        }

    def ended(self, method: str, source: str, code: Code, seconds: float) -> None:
        self.in_flight -= 1
        key = (method, source, code)
        self._counts[key] = self._counts.get(key, 0) + 1
        buckets = self._buckets.get(source)
        if buckets is None:
            buckets = self._buckets[source] = [0] * (len(LATENCY_BOUNDS_SECONDS) + 1)
        buckets[bisect_left(LATENCY_BOUNDS_SECONDS, seconds)] += 1
        self._seconds[source] = self._seconds.get(source, 0.0) + seconds

    def _observe_counts(self, _options: CallbackOptions) -> Iterable[Observation]:
        for (method, source, code), count in self._counts.copy().items():
            yield Observation(count, {"method": method, "source": source, "code": code.name})

    def _observe_seconds(self, _options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(seconds, {"source": source}) for source, seconds in self._seconds.copy().items()]

    def _observe_buckets(self, _options: CallbackOptions) -> Iterable[Observation]:
        bounds = [*(str(bound) for bound in LATENCY_BOUNDS_SECONDS), "+Inf"]
        for source, counts in self._buckets.copy().items():
            for bound, total in zip(bounds, accumulate(counts.copy()), strict=True):
                yield Observation(total, {"source": source, "le": bound})


class Metrics:
    """Every number of one running Understudy, in a registry of its own.

    `readers` are further OpenTelemetry readers (OTLP); `/metrics` is always there.
    """

    def __init__(self, readers: Sequence[MetricReader] = (), resource: Resource | None = None) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        own = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=self._registry)
        self._provider = MeterProvider(
            [own, *readers], resource=resource or Resource.get_empty(), shutdown_on_exit=False
        )
        self._meter = self._provider.get_meter("understudy")
        self._closed = False

        self._state = self._gauge("fallback_state")
        self._wal_entries = self._gauge("fallback_wal_entries", "state")
        self._sync_errors = self._counter("fallback_sync_errors_total")
        self._health_checks = self._counter("fallback_health_checks_total", "result")
        self._sync_errors_by_kind = self._counter("understudy_sync_errors_by_kind_total", "kind")
        self._calls = _Calls()
        for name, observe in self._calls.observers.items():
            make = (
                self._meter.create_observable_counter
                if name.endswith("_total")
                else self._meter.create_observable_gauge
            )
            make(name, [observe], description=NAMES[name])
        self._up = self._gauge("understudy_upstream_up")
        self._breaker = self._gauge("understudy_breaker_open")
        self._restarts = self._counter("understudy_replica_restarts_total")
        self._mirror_lag = self._gauge("understudy_mirror_lag_entries")
        self._quarantine = self._gauge("understudy_quarantine_entries")
        self._conflicts = self._counter("understudy_conflicts_total", "outcome")
        self._conflict_rows_dropped = self._counter("understudy_conflict_rows_dropped_total")
        self._hydrated = self._gauge("understudy_hydration_points", "collection")
        self._hydration_expected = self._gauge("understudy_hydration_expected_points", "collection")
        self._repaired = self._counter("understudy_repaired_points_total")
        self._restored = self._counter("understudy_restored_points_total")
        self._wal_bytes = self._gauge("understudy_wal_bytes")
        self._oldest = self._gauge("understudy_wal_oldest_pending_seconds")
        self._latched = self._gauge("understudy_wal_latched")
        self._damaged = self._gauge("understudy_wal_damaged_segments")
        self._redactions = self._counter("understudy_redactions_total")
        self._loop_lag = self._gauge("understudy_loop_lag_seconds")
        self._sync_duration = self._histogram("fallback_sync_duration_seconds", SYNC_BOUNDS_SECONDS)
        self._start_at_zero()

    # --- the five fixed ones --------------------------------------------------------------------------------------

    def state(self, value: int) -> None:
        """0 = remote, 1 = local, 2 = draining."""
        self._state.set((), value)

    def wal_entries(self, state: str, entries: int) -> None:
        """Entries in the log; `state` is "pending" or "synced"."""
        self._wal_entries.set((state,), entries)

    def sync_duration(self, seconds: float) -> None:
        """A sync that ended with nothing pending took this long."""
        self._sync_duration.record(seconds)

    def sync_error(self, kind: str) -> None:
        """Qdrant did not take a replayed entry; `kind` is "transient", "permanent" or "auth"."""
        self._sync_errors.add(())
        self._sync_errors_by_kind.add((kind,))

    def health_check(self, result: str) -> None:
        """A probe ended; `result` is "ok", "failed" or "ignored"."""
        self._health_checks.add((result,))

    # --- calls ----------------------------------------------------------------------------------------------------

    def request_started(self) -> None:
        """A call came in; `request` ends it. Both belong to one thread."""
        self._calls.in_flight += 1

    def request(self, method: str, source: str, code: Code, seconds: float) -> None:
        """A call was answered. `source` is "remote", "local" or "none"; methods outside `METHODS` count as "other"."""
        self._calls.ended(method if method in METHODS else "other", source, code, seconds)

    def redactions(self, count: int) -> None:
        """So many secrets were cut out of one request."""
        self._redactions.add((), count)

    # --- parts ----------------------------------------------------------------------------------------------------

    def upstream_up(self, up: bool) -> None:
        """Whether Qdrant counts as up."""
        self._up.set((), int(up))

    def breaker(self, phase: str) -> None:
        """`phase` is "closed", "open" or "half_open"."""
        self._breaker.set((), {"closed": 0.0, "open": 1.0}.get(phase, 0.5))

    def replica_restart(self) -> None:
        """The replica process was started again."""
        self._restarts.add(())

    def mirror_lag(self, entries: int) -> None:
        """Log entries that the replica has not applied yet."""
        self._mirror_lag.set((), entries)

    def quarantine(self, entries: int) -> None:
        """Entries in quarantine."""
        self._quarantine.set((), entries)

    def conflict(self, outcome: str, count: int) -> None:
        """Points of pending writes that others changed; `outcome` as in `NAMES`."""
        self._conflicts.add((outcome,), count)

    def conflict_rows_dropped(self, count: int) -> None:
        """The conflict log had no room for so many rows."""
        self._conflict_rows_dropped.add((), count)

    def hydration(self, collection: str, points: int, expected_points: int) -> None:
        """How far the copy of one collection is."""
        self._hydrated.set((collection,), points)
        self._hydration_expected.set((collection,), expected_points)

    def repaired(self, points: int) -> None:
        """A comparison with Qdrant found points that differed."""
        self._repaired.add((), points)

    def restored(self, points: int) -> None:
        """Qdrant had lost points that it had acknowledged."""
        self._restored.add((), points)

    def hydration_gone(self, collection: str) -> None:
        """The collection is no more."""
        self._hydrated.drop((collection,))
        self._hydration_expected.drop((collection,))

    def wal(self, size_bytes: int, oldest_pending_seconds: float, latched: bool) -> None:
        """Size of the log, age of its oldest pending entry, whether it takes writes."""
        self._wal_bytes.set((), size_bytes)
        self._oldest.set((), oldest_pending_seconds)
        self._latched.set((), int(latched))

    def wal_damage(self, segments: int) -> None:
        """How many closed segments are damaged, as far as the patrol has seen."""
        self._damaged.set((), segments)

    def loop_lag(self, seconds: float) -> None:
        """The event loop ran this late."""
        self._loop_lag.set((), seconds)

    # --- out ------------------------------------------------------------------------------------------------------

    def prometheus(self) -> bytes:
        """All numbers as Prometheus text, type `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def close(self) -> None:
        """Send what OTLP readers still hold and stop; later calls count into nothing."""
        if not self._closed:
            self._closed = True
            self._provider.shutdown()

    def _start_at_zero(self) -> None:
        for series in (self._state, self._sync_errors, self._up, self._breaker, self._restarts):
            series.set((), 0)
        for series in (self._mirror_lag, self._quarantine, self._wal_bytes, self._oldest):
            series.set((), 0)
        for series in (self._latched, self._damaged, self._redactions, self._repaired, self._restored, self._loop_lag):
            series.set((), 0)
        for state in ("pending", "synced"):
            self._wal_entries.set((state,), 0)
        for result in ("ok", "failed", "ignored"):
            self._health_checks.set((result,), 0)
        for outcome in ("overwritten", "not_written", "quarantined", "unknown"):
            self._conflicts.set((outcome,), 0)
        self._conflict_rows_dropped.set((), 0)
        for kind in ("transient", "permanent", "auth"):
            self._sync_errors_by_kind.set((kind,), 0)

    def _gauge(self, name: str, *labels: str) -> _Series:
        series = _Series(labels)
        self._meter.create_observable_gauge(name, [series.observe], description=NAMES[name])
        return series

    def _counter(self, name: str, *labels: str) -> _Series:
        series = _Series(labels)
        self._meter.create_observable_counter(name, [series.observe], description=NAMES[name])
        return series

    def _histogram(self, name: str, bounds: Sequence[float]) -> Histogram:
        return self._meter.create_histogram(
            name, unit="s", description=NAMES[name], explicit_bucket_boundaries_advisory=bounds
        )
