"""Log lines on stderr: one event a line, for people or as JSON, with trace ids.

Promises: every line that an operator must be able to search for has its text in `Message`; a value under a name in
`SECRET_NAMES` is masked, and every text passes the given `redact`. Lines of other libraries (gRPC, aiohttp, Chroma)
come out in the same shape. Does not promise to write lines to files or to rotate them: that is the service manager's
work.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from server.config import LogFormat, Logs

SECRET_NAMES: Final = re.compile(r"(api.?key|authorization|bearer|secret|password|token|credential)", re.IGNORECASE)
MASK: Final = "********"
MAX_TEXT_CHARS: Final = 2000


class Message(StrEnum):
    """What operators search for: fixed texts, documented in docs/operations.md."""

    STARTED = "understudy is ready"
    STOPPING = "understudy is stopping"
    STOPPED = "understudy has stopped"
    FALLBACK_ON = "fallback on: Qdrant is away, answering locally"
    FALLBACK_OFF = "fallback off: Qdrant answers again and nothing is pending"
    DRAINING = "Qdrant is back, pending writes are being replayed"
    SYNC_STARTED = "sync started"
    SYNC_COMPLETE = "sync complete"
    SYNC_FAILED = "sync failed"
    ENTRY_QUARANTINED = "Qdrant refused a write, it is kept in quarantine"
    CONFLICT = "others changed points that pending writes are about"
    CONFLICT_ROWS_DROPPED = "the conflict log is full, its oldest rows are dropped"
    RESTORED = "Qdrant had lost what it acknowledged, it was sent again"
    BREAKER_OPEN = "circuit breaker open: replay rests"
    BREAKER_CLOSED = "circuit breaker closed: replay goes on"
    LOCAL_WRITE_FAILED = "local write failed"
    WAL_DAMAGED = "the write-ahead log is damaged"
    WAL_RECOVERED = "the write-ahead log was recovered"
    REPLICA_RESTARTED = "the replica process was restarted"
    HYDRATION_STARTED = "hydration started"
    HYDRATION_COMPLETE = "hydration complete"
    HYDRATION_FAILED = "hydration failed, it will be tried again"
    COLLECTION_GONE = "Qdrant no longer has the collection, its local copy is removed"
    CAME_BACK_EMPTY = "Qdrant came back without any collection, the local copies are kept"
    CREDENTIAL_MISSING = "replay waits: Qdrant wants a key and none is known"


def build_logger(
    settings: Logs,
    *,
    stream: TextIO,
    redact: Callable[[str], str],
    trace: Processor,
) -> FilteringBoundLogger:
    """A logger that writes to `stream`; `trace` adds the ids of the current span to an event."""

    def clean(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {key: _clean(key, value, redact) for key, value in event.items()}

    last: Processor
    if settings.format is LogFormat.JSON:
        last = structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    else:
        last = structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False)
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            trace,
            structlog.processors.format_exc_info,
            clean,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level(settings.level)),
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return logger


def discard_logger() -> FilteringBoundLogger:
    """A logger that says nothing."""
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[_drop],
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        context_class=dict,
    )
    return logger


def _drop(_logger: WrappedLogger, _method: str, _event: EventDict) -> EventDict:
    raise structlog.DropEvent


class ForeignLines(logging.Handler):
    """Brings the lines of other libraries into ours; `install` and `remove` frame its life."""

    def __init__(self, logger: FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        fields: dict[str, Any] = {"library": record.name}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        self._logger.log(record.levelno, record.getMessage(), **fields)

    def install(self) -> None:
        """Take the lines of every library from now on."""
        logging.getLogger().addHandler(self)

    def remove(self) -> None:
        """Leave things as they were."""
        logging.getLogger().removeHandler(self)


def _clean(key: str, value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    if SECRET_NAMES.search(key):
        return MASK
    text = redact(value if isinstance(value, str) else str(value))
    # A traceback keeps its end, where the cause stands; anything else keeps its start.
    if len(text) > MAX_TEXT_CHARS:
        return f"… {text[-MAX_TEXT_CHARS:]}" if key == "exception" else f"{text[:MAX_TEXT_CHARS]} …"
    return text


def _level(name: str) -> int:
    return logging.getLevelNamesMapping()[name.upper()]
