"""Every setting and every limit, frozen, with its unit in the name.

Promises: defaults < YAML file < environment < flags, each value with the place it came from; an unknown key or a value
out of range is a `ConfigError` that names the key and the place. Does not promise to re-read anything while running.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from server.errors import ConfigError

MIB = 1024 * 1024
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: object) -> object:
    """`30s`, `500ms`, `5m`, `2h`, `7d` or a plain number of seconds."""
    if isinstance(value, str):
        text = value.strip()
        for unit in sorted(_UNITS, key=len, reverse=True):
            number = text.removesuffix(unit)
            if number != text:
                try:
                    return float(number) * _UNITS[unit]
                except ValueError:
                    break
    return value


def _unless_off(value: object) -> object:
    return None if value in ("off", "none", "") else value


def _chroma_url(value: object) -> object:
    """What else a URL can carry may be secret, and settings of the replica travel on a command line."""
    if value is None:
        return value
    try:
        parts = urlsplit(str(value))
        is_plain = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port is not None
    except ValueError:
        is_plain = False
    if not is_plain or parts.netloc.count("@") or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("must be http://HOST:PORT or https://HOST:PORT, with no user, password, path or query")
    return f"{parts.scheme}://{parts.netloc}"


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=10 * 365 * 86400)]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LocalReads(Enum):
    """What a read offline gets when the replica does not hold the whole collection."""

    BEST_EFFORT = "best_effort"
    COMPLETE_ONLY = "complete_only"


class StaleWarning(Enum):
    """Where the warning of a local answer goes: trailing metadata only, or into each payload as well."""

    METADATA = "metadata"
    PAYLOAD = "payload"


class QuarantinePolicy(Enum):
    """What happens to later entries that touch a quarantined point."""

    CAUSAL = "causal"
    SKIP = "skip"
    HALT = "halt"


class ConflictPolicy(Enum):
    """What happens to pending writes to points that others changed during the outage."""

    LOCAL_WINS = "local_wins"
    REMOTE_WINS = "remote_wins"
    QUARANTINE = "quarantine"


class Compression(Enum):
    """How answers to clients are compressed, when the client accepts it."""

    NONE = "none"
    GZIP = "gzip"


class Fallback(Section):
    """The local side: replica and log."""

    enabled: bool = Field(True, description="Step in when Qdrant is away; off = a plain proxy")
    local_path: Path = Field(Path(".understudy/store"), description="Directory of the replica")
    wal_path: Path = Field(Path(".understudy/wal"), description="Directory of the write-ahead log")
    health_check_interval: Seconds = Field(30.0, description="The slow, periodic ping of Qdrant")
    sync_on_connect: bool = Field(True, description="Replay as soon as Qdrant is back; off = `understudy sync` does it")
    wal_retention_days: float = Field(7.0, ge=0, description="Synced entries are kept this many days")


class VectorStore(Section):
    """Qdrant, and what stands in for it."""

    provider: str = Field("qdrant", pattern="^qdrant$", description="Only qdrant")
    url: str | None = Field(None, description="Qdrant's gRPC address; none = a local store that syncs once one is set")
    api_key: SecretStr | None = Field(None, description="Key for Understudy's own calls: probe, hydration, replay")
    ca_path: Path | None = Field(None, description="CA file for https:// upstreams; none = the system's")
    fallback: Fallback = Fallback()


class Edge(Section):
    """The gRPC port that clients see."""

    max_message_bytes: int = Field(-1, ge=-1, description="Largest message either way; -1 = unlimited, as Qdrant")
    compression: Compression = Field(Compression.NONE, description="Compression of answers")
    shutdown_grace_seconds: Seconds = Field(10.0, description="Calls in flight get this long at SIGTERM")
    tls_cert_path: Path | None = Field(None, description="Certificate chain (PEM); none = plain text")
    tls_key_path: Path | None = Field(None, description="Private key (PEM) of the certificate")


class Health(Section):
    """How Understudy decides that Qdrant is up."""

    probe_interval_seconds: Seconds = Field(
        0.5, gt=0, description="Time between the starts of fast probes; a slow one does not hold up the next"
    )
    probe_timeout_seconds: Seconds = Field(1.0, gt=0, description="A probe that takes longer has failed")
    fall: PositiveInt = Field(3, description="Failed probes in a row until Qdrant counts as down")
    rise: PositiveInt = Field(2, description="Good probes in a row until it counts as up again")
    dwell_seconds: Seconds = Field(
        1.0, description="Least time without a failure before it counts as up again, against flapping"
    )
    backoff_max_seconds: Seconds = Field(5.0, le=5, description="Longest pause between attempts to reconnect")
    lag_tolerance_seconds: Seconds = Field(0.5, description="A probe that failed while we ran this late does not count")


class Wal(Section):
    """The log: its key and its limits."""

    key: SecretStr | None = Field(
        None, description="Key that signs the log, as hex or base64, then earlier ones; none = `wal.key_path`"
    )
    key_path: Path | None = Field(
        None,
        description="File with the key that signs the log; none = the systemd credential `understudy-wal-key`, "
        "else a key of its own in `keys/` of the log",
    )
    segment_bytes: PositiveInt = Field(64 * MIB, description="A segment is closed past this size")
    total_bytes: PositiveInt = Field(4096 * MIB, description="Past this size new offline writes are refused")
    entry_bytes: PositiveInt = Field(10_000_000, description="Largest entry")
    entry_points: PositiveInt = Field(10_000, description="Most points in one entry")
    queue_entries: PositiveInt = Field(4096, description="Most writers waiting for one fsync")
    queue_bytes: PositiveInt = Field(64 * MIB, description="Most bytes waiting for one fsync")
    cache_bytes: int = Field(16 * MIB, ge=0, description="Recent entries kept in memory for readers")
    room_bytes: int = Field(MIB, ge=0, description="Zeros written ahead of small batches, for shorter syncs; 0 = none")
    head_bytes: PositiveInt = Field(8 * MIB, description="The signed head is renewed after this much")
    head_seconds: Seconds = Field(1.0, gt=0, description="The signed head is renewed after this long at the latest")
    pressure_share: float = Field(
        0.8, gt=0, le=1, description="Share of total_bytes above which retention shrinks to grace_seconds"
    )
    grace_seconds: Seconds = Field(60.0, description="Short of space, replayed entries are still kept this long")
    patrol_bytes_per_second: int = Field(
        256 * 1024,
        ge=0,
        description="Closed segments are read again and verified at this pace, to find bit rot; 0 = not",
    )
    free_bytes_min: int = Field(64 * MIB, ge=0, description="With less free on its disk new offline writes are refused")
    ballast_bytes: int = Field(
        16 * MIB, ge=0, description="Blocks kept back and given up when the disk is full; 0 = none"
    )
    reopen_seconds: Seconds = Field(
        1.0, description="First try to take writes again after a failed write or fsync; 0 = only `wal reopen`"
    )
    reopen_seconds_max: Seconds = Field(60.0, gt=0, description="Longest pause between such tries")


class Replay(Section):
    """Bringing the log to Qdrant."""

    breaker_failures: PositiveInt = Field(5, description="Transient failures in a row that open the breaker")
    breaker_open_seconds: Seconds = Field(300.0, description="How long it stays open")
    retry_initial_seconds: Seconds = Field(0.2, gt=0, description="First pause after a transient failure")
    retry_max_seconds: Seconds = Field(5.0, gt=0, description="Longest pause after a transient failure")
    call_timeout_seconds: Seconds = Field(60.0, gt=0, description="One replayed entry may take this long")
    queue_limit: PositiveInt = Field(100, description="Sync requests that may wait")
    quarantine_policy: QuarantinePolicy = Field(QuarantinePolicy.CAUSAL, description="Followers of a refused entry")
    conflicts: ConflictPolicy = Field(ConflictPolicy.LOCAL_WINS, description="Pending writes to points others changed")
    conflict_points: PositiveInt = Field(500, description="Points compared with Qdrant's by one call before a replay")
    conflict_log_bytes: PositiveInt = Field(64 * MIB, description="Past this size the oldest conflicts are dropped")
    drain_hold_seconds: Seconds = Field(
        0.5, le=5, description="Longest wait of one write during a drain, so that the drain ends under sustained writes"
    )
    barrier_seconds: Seconds = Field(0.1, gt=0, le=1, description="Longest pause of writes at the end of a drain")
    page_entries: PositiveInt = Field(256, description="Entries read ahead from the log")
    page_bytes: PositiveInt = Field(32 * MIB, description="Bytes read ahead from the log")
    merge_points: PositiveInt = Field(500, description="Points of consecutive upserts sent as one; 1 = never merge")
    merge_bytes: PositiveInt = Field(8 * MIB, description="Bytes of consecutive upserts sent as one")
    bisect_calls: PositiveInt = Field(2000, description="Calls to find the refused points of one entry")
    doubtful_tries: PositiveInt = Field(3, description="Tries of an entry at which Qdrant fails inside")
    grace_seconds: Seconds = Field(
        60.0, le=3600, description="What Qdrant acknowledged this shortly before it was lost is looked after; 0 = off"
    )
    grace_points: PositiveInt = Field(256, le=1000, description="Points per look at what Qdrant may have lost")
    grace_patience_seconds: Seconds = Field(30.0, gt=0, description="A look without a replica is put off after this")
    credential_retry_seconds: Seconds = Field(30.0, gt=0, description="Pause after Qdrant refused the credential")


class Replica(Section):
    """The stand-in for Qdrant."""

    local_reads: LocalReads = Field(LocalReads.BEST_EFFORT, description="Answers from an incomplete collection")
    exact_below_bytes: int = Field(10_000_000, ge=0, description="Vectors of a collection below this: exact search")
    resident_bytes: int | None = Field(
        None, ge=0, description="Vectors kept in memory for exact search; unset = a quarter of the memory there is"
    )
    warm_seconds: Seconds = Field(5.0, description="Pause between updates of what is kept in memory; 0 = on demand")
    index: bool = Field(True, description="Keep a Chroma index for larger collections")
    chroma: Annotated[str | None, BeforeValidator(_chroma_url)] = Field(
        None, description="A Chroma server that holds the index, as http://HOST:PORT; none = one of its own"
    )
    index_batch_points: PositiveInt = Field(1000, le=5000, description="Points per write while the index is built")
    restart_max_seconds: Seconds = Field(5.0, gt=0, description="Longest pause between restarts of the process")
    mirror_queue_entries: PositiveInt = Field(10_000, description="Entries the replica may lag behind the log")
    apply_batch_entries: PositiveInt = Field(256, description="Entries applied in one transaction")
    prepare_group_entries: PositiveInt = Field(
        64, description="Most offline writes prepared in one call; 1 = each alone"
    )
    prepare_group_bytes: PositiveInt = Field(
        64 * 1024, description="Most bytes prepared in one call; larger writes go alone"
    )
    response_max_points: PositiveInt = Field(1_000_000, description="Most points in one local answer")
    read_threads: PositiveInt = Field(4, le=64, description="Local reads answered at the same time")
    start_timeout_seconds: Seconds = Field(30.0, gt=0, description="Time for the process to start and serve")
    call_timeout_seconds: Seconds = Field(60.0, gt=0, description="Time for a call, or for a process to take one")
    hang_seconds: Seconds = Field(30.0, gt=0, description="A process silent for this long is killed and replaced")
    resolved_points: PositiveInt = Field(50_000, description="Writes whose filter matches more are logged as filters")
    former_points: PositiveInt = Field(
        50_000, description="Changes of points within `replay.grace_seconds` that are kept, to know what Qdrant lost"
    )
    touched_keys: PositiveInt = Field(
        2_000_000, description="Points whose last log entry is kept in mind for hydration"
    )


class Hydrate(Section):
    """Copying what was in Qdrant before."""

    enabled: bool = Field(True, description="Copy in the background")
    collections: tuple[str, ...] = Field((), description="Only these; empty = all")
    max_points: int = Field(5_000_000, ge=0, description="Collections with more points are left out and say so")
    page_points: PositiveInt = Field(256, le=10_000, description="Most points per page")
    page_bytes: PositiveInt = Field(
        MIB // 16, description="Pages of large points hold fewer points, to stay near this size"
    )
    page_bytes_max: PositiveInt = Field(
        64 * MIB, description="A page past this size is not taken in: fewer points are asked for; bounds the memory"
    )
    points_per_second: int = Field(
        2100, ge=0, description="Rate limit, halved while clients' calls keep the event loop busy; 0 = none"
    )
    refresh_seconds: Seconds = Field(60.0, gt=0, description="Time between looks at Qdrant's list of collections")
    retry_seconds: Seconds = Field(
        5.0, gt=0, description="Pause after a copy failed, and before a collection in doubt is copied again"
    )
    call_timeout_seconds: Seconds = Field(60.0, gt=0, description="One page may take this long")
    settle_seconds: Seconds = Field(1.0, description="Time for writes without wait to take effect at Qdrant")
    settle_rounds: PositiveInt = Field(5, description="Waits for a point that is written all the time")
    verify_seconds: Seconds = Field(
        86_400.0, description="Time between comparisons of whole collections with Qdrant; 0 = only when asked for"
    )
    verify_points_per_second: int = Field(1000, ge=0, description="Pace of such a comparison; 0 = no limit")


class Tenancy(Section):
    """Many tenants behind one proxy."""

    enabled: bool = Field(False, description="Demand a tenant on every call and confine the call to it")
    metadata_key: str = Field("x-tenant-id", description="Metadata key that names the tenant")
    payload_key: str = Field("tenant_id", min_length=1, description="Payload key that holds the tenant")
    max_length: PositiveInt = Field(128, description="Longest tenant name")


class Scrub(Section):
    """Secrets that must not reach the disk."""

    enabled: bool = Field(True, description="Redact what the rules find")
    rules_path: Path | None = Field(None, description="More rules, in gitleaks' TOML format")


class Keys(Section):
    """Who may call while Qdrant cannot check."""

    api_key: SecretStr | None = Field(None, description="Key that Understudy accepts offline")
    read_only_api_key: SecretStr | None = Field(None, description="Key that may only read offline")
    remembered: PositiveInt = Field(1000, description="Credentials seen accepted that are remembered for outages")


class Responses(Section):
    """What local answers carry."""

    stale_warning: StaleWarning = Field(StaleWarning.METADATA, description="Where the stale warning goes")


class LogFormat(Enum):
    """Shape of log lines."""

    CONSOLE = "console"
    JSON = "json"


class Logs(Section):
    """Log lines on stderr."""

    level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least level shown")
    format: LogFormat = Field(LogFormat.CONSOLE, description="For people or for machines")


class Tracing(Section):
    """OpenTelemetry traces; where they go is set by the standard OTEL_* variables."""

    enabled: bool = Field(True, description="Make spans when an OTLP endpoint is set")
    sample_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of traces kept; a sampled caller is always followed"
    )


class Settings(Section):
    """The whole configuration."""

    listen: str = Field("127.0.0.1:6334", description="HOST:PORT for Qdrant clients; port 0 picks one")
    admin: Annotated[str | None, BeforeValidator(_unless_off)] = Field(
        "127.0.0.1:6335", description="HOST:PORT of status page and metrics; `off` = none"
    )
    vectorstore: VectorStore = VectorStore()
    edge: Edge = Edge()
    health: Health = Health()
    wal: Wal = Wal()
    replay: Replay = Replay()
    replica: Replica = Replica()
    hydrate: Hydrate = Hydrate()
    tenancy: Tenancy = Tenancy()
    scrub: Scrub = Scrub()
    keys: Keys = Keys()
    responses: Responses = Responses()
    logs: Logs = Logs()
    tracing: Tracing = Tracing()


# Names of the seed product, read as aliases of ours.
SEED_NAMES: Mapping[str, str] = {
    "CONTEXTD_FALLBACK_ENABLED": "vectorstore.fallback.enabled",
    "CONTEXTD_FALLBACK_LOCAL_PATH": "vectorstore.fallback.local_path",
    "CONTEXTD_FALLBACK_WAL_PATH": "vectorstore.fallback.wal_path",
    "CONTEXTD_FALLBACK_HEALTH_INTERVAL": "vectorstore.fallback.health_check_interval",
    "CONTEXTD_FALLBACK_SYNC_ON_CONNECT": "vectorstore.fallback.sync_on_connect",
    "CONTEXTD_FALLBACK_WAL_RETENTION_DAYS": "vectorstore.fallback.wal_retention_days",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and, for each key path, where its value came from: `default`, `file F`, `environment V` or `flag`."""

    settings: Settings
    sources: Mapping[str, str]


def key_paths() -> Iterator[tuple[str, str]]:
    """Every key as (path, description), such as `wal.segment_bytes`."""
    yield from ((path, field.description or "") for path, field in _fields(Settings))


def secret_variables() -> frozenset[str]:
    """The environment variables that hold secrets."""
    return frozenset(
        environment_name(path) for path, field in _fields(Settings) if SecretStr in get_args(field.annotation)
    )


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _fields(field.annotation, f"{path}.")
        else:
            yield path, field


def environment_name(path: str) -> str:
    """The environment variable of a key: `wal.segment_bytes` → `UNDERSTUDY_WAL_SEGMENT_BYTES`."""
    return "UNDERSTUDY_" + path.replace(".", "_").upper()


def load(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Loaded:
    """Merge the four layers. `flags` maps key paths to values; None means that the flag was not given.

    Raises ConfigError for an unreadable file, an unknown key or a bad value, naming key and place.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {path: "default" for path, _ in key_paths()}
    for path, value, source in _layers(file, environment, flags):
        if path not in sources:
            raise ConfigError(f"unknown setting `{path}` ({source})")
        values[path] = value
        sources[path] = source
    try:
        settings = Settings.model_validate(_nested(values))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"bad value for `{path}` ({sources.get(path, 'file')}): {first['msg']}") from error
    return Loaded(settings, sources)


def _layers(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> Iterator[tuple[str, Any, str]]:
    if file is not None:
        yield from ((path, value, f"file {file}") for path, value in _flat(_read_yaml(file)))
    known = {environment_name(path): path for path, _ in key_paths()}
    for name, path in {**SEED_NAMES, **known}.items():
        if name in environment:
            yield path, _from_environment(path, environment[name]), f"environment {name}"
    yield from ((path, value, "flag") for path, value in flags.items() if value is not None)


def _from_environment(path: str, text: str) -> Any:
    if path == "hydrate.collections":
        return tuple(name for name in text.split(",") if name)
    return None if text == "" else text


def _read_yaml(file: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration file {file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration file {file} is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"configuration file {file} must hold a mapping, got {type(content).__name__}")
    return content


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
