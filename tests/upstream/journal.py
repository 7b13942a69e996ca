"""What the stand-in received, in the order in which its engine took it.

One JSON object a line, in two kinds. `{"seq", "method", "collection", "ids", "wait", "body"}` is written before the
engine is called; `{"seq", "code", "text", "operation_id"}` after it and before the answer leaves. A line is one
write(2) on an O_APPEND file, so what was written survives SIGKILL; a torn last line is cut at the next start.

Promises: a call that was answered has both lines; the order of the first lines is the order of application. Does not
promise that a call with only the first line was applied, nor that it was not.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

NAME = "journal.jsonl"


@dataclass(slots=True)
class Entry:
    """One call. `code` is None when the stand-in died before it could answer."""

    seq: int
    method: str
    collection: str = ""
    ids: list[int | str] = field(default_factory=list)
    wait: bool = False
    body: bytes = b""
    fault: str = ""
    code: str | None = None
    text: str = ""
    operation_id: int | None = None

    @property
    def was_applied(self) -> bool:
        """Whether the engine took it and said so."""
        return self.code == "OK"


class Journal:
    """The writing end. One writer: the engine's thread."""

    def __init__(self, directory: Path, body_bytes: int) -> None:
        path = directory / NAME
        self._body_bytes = body_bytes
        self.next_seq = _cut_torn_tail(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def received(self, method: str, request: Message | None, body: bytes, *, fault: str = "") -> int:
        """Note a call before it is applied; returns its number."""
        seq = self.next_seq
        self.next_seq += 1
        line: dict[str, Any] = {"seq": seq, "method": method}
        if request is not None:
            line |= {
                "collection": getattr(request, "collection_name", ""),
                "ids": ids_of(request),
                "wait": bool(getattr(request, "wait", False)),
            }
        if len(body) <= self._body_bytes:
            line["body"] = base64.b64encode(body).decode()
        if fault:
            line["fault"] = fault
        self._write(line)
        return seq

    def answered(self, seq: int, code: str, text: str = "", operation_id: int | None = None) -> None:
        """Note the outcome of a call before the answer leaves."""
        self._write({"seq": seq, "code": code, "text": text, "operation_id": operation_id})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, (json.dumps(line, separators=(",", ":")) + "\n").encode())


def read(directory: Path) -> list[Entry]:
    """Every call so far, in order. Safe while the stand-in runs."""
    entries: dict[int, Entry] = {}
    for line in _lines(directory / NAME):
        seq = line["seq"]
        if "method" in line:
            line["body"] = base64.b64decode(line.get("body", ""))
            entries[seq] = Entry(**line)
        else:
            entry = entries[seq]
            entry.code, entry.text, entry.operation_id = line["code"], line["text"], line["operation_id"]
    return list(entries.values())


def ids_of(request: Message) -> list[int | str]:
    """The point ids that a request names, in its order, whatever the method."""
    return list(_ids(request))


def _ids(message: Message) -> Iterator[int | str]:
    if message.DESCRIPTOR.full_name == "qdrant.PointId":
        kind = message.WhichOneof("point_id_options")
        if kind is not None:
            yield getattr(message, kind)
        return
    for descriptor, value in message.ListFields():
        if descriptor.name not in _WITH_IDS:
            continue
        for part in value if descriptor.is_repeated else (value,):
            yield from _ids(part)


# The fields on the way from a request down to the ids it writes or gets; filters, vectors and payloads are not walked.
_WITH_IDS = frozenset(
    {
        "id",
        "ids",
        "points",
        "points_selector",
        "operations",
        "upsert",
        "delete_deprecated",
        "set_payload",
        "overwrite_payload",
        "delete_payload",
        "clear_payload_deprecated",
        "update_vectors",
        "delete_vectors",
        "delete_points",
        "clear_payload",
    }
)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield json.loads(line)


def _cut_torn_tail(path: Path) -> int:
    if not path.exists():
        return 1
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return max((line["seq"] for line in _lines(path)), default=0) + 1
