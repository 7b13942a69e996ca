"""PURE. Entries of the log and of the quarantine as rows of JSON, for people and scripts.

Promises: the same keys whether a server runs or not; times are ISO 8601 in UTC. Secrets were cut out of requests
before they were written. Does no I/O.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from generated.understudy.wal.v1 import entry_pb2
from server.rpc import METHODS, WAL_KINDS, Code
from server.wal.inspect import ListedRecord, ListState
from server.wal.quarantine import QuarantineItem
from server.wal.record import Record


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries are wanted; None = any. `since_ns` is included, `until_ns` is not."""

    state: ListState | None = None
    collection: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None

    def wants(self, listed: ListedRecord) -> bool:
        """Whether an entry is one of them."""
        record = listed.record
        if self.state not in (None, listed.state):
            return False
        if self.since_ns is not None and record.wall_ns < self.since_ns:
            return False
        if self.until_ns is not None and record.wall_ns >= self.until_ns:
            return False
        if self.collection is None:
            return True
        entry = _parsed(record.body)
        return entry is not None and entry.collection == self.collection

    def document(self) -> dict[str, Any]:
        """As JSON, for the control socket."""
        return {
            "state": self.state.value if self.state else None,
            "collection": self.collection,
            "since_ns": self.since_ns,
            "until_ns": self.until_ns,
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Filter:
        """From `document`."""
        state = document.get("state")
        return cls(
            ListState(state) if state else None,
            document.get("collection"),
            document.get("since_ns"),
            document.get("until_ns"),
        )


def described(listed: ListedRecord) -> dict[str, Any]:
    """An entry without its contents, for lists."""
    record = listed.record
    entry = _parsed(record.body)
    return {
        "seq": record.seq,
        "state": listed.state.value,
        "method": method_of(record.kind),
        "collection": entry.collection if entry else "",
        "tenant": entry.tenant if entry else "",
        "points": record.points,
        "bytes": len(record.body),
        "time": moment(record.wall_ns),
        "trace": record.trace,
    }


def contents(body: bytes) -> dict[str, Any]:
    """What an entry asks Qdrant to do."""
    entry = _parsed(body)
    if entry is None:
        return {"request": "cannot be decoded"}
    return {
        "maybe_applied": entry.maybe_applied,
        "retry_of": entry.retry_of or None,
        "request": _request(entry.method, entry.request),
        "resolved": [{"method": one.method, "request": _request(one.method, one.request)} for one in entry.resolved],
    }


def exported(listed: ListedRecord, *, raw: bool) -> dict[str, Any]:
    """An entry with its contents; `raw` adds everything that is needed to write it anew, byte for byte."""
    row = {**described(listed), **contents(listed.record.body)}
    if raw:
        record = listed.record
        row["raw"] = {
            "kind": record.kind,
            "wall_ns": record.wall_ns,
            "principal": record.principal.hex(),
            "body": base64.b64encode(record.body).decode("ascii"),
        }
    return row


def refused(item: QuarantineItem) -> dict[str, Any]:
    """An entry in quarantine, without its contents. `time` is that of the refusal."""
    return {
        "seq": item.seq,
        "method": method_of(item.kind),
        "code": Code(item.code).name if item.code in {code.value for code in Code} else str(item.code),
        "details": item.details,
        "flaw": item.flaw,
        "time": moment(item.wall_ns),
        "file": str(item.path),
    }


def refused_whole(item: QuarantineItem, record: Record | None) -> dict[str, Any]:
    """An entry in quarantine with its contents; only what is known of it when its file is not to be trusted."""
    if record is None:
        return refused(item)
    row = described(ListedRecord(record, ListState.QUARANTINED))
    return {**row, **refused(item), "written": moment(record.wall_ns), **contents(record.body)}


def method_of(kind: int) -> str:
    """The method that a record's kind stands for."""
    return WAL_KINDS.get(kind, f"kind {kind}")


def moment(wall_ns: int) -> str:
    """Nanoseconds since the epoch as ISO 8601."""
    return datetime.fromtimestamp(wall_ns / 1e9, UTC).isoformat(timespec="milliseconds")


def _request(method: str, body: bytes) -> Any:
    row = METHODS.get(method)
    if row is None:
        return f"{method}: {len(body)} bytes"
    try:
        return MessageToDict(row.request.FromString(body), preserving_proto_field_name=True)
    except DecodeError:
        return "cannot be decoded"


def _parsed(body: bytes) -> entry_pb2.Entry | None:
    try:
        return entry_pb2.Entry.FromString(body)
    except DecodeError:
        return None
