"""What `understudy wal conflicts` commands do with the conflict log, be it a server's or one at rest.

Promises: rows are JSON with the same keys whether a server runs or not; secrets were cut out before they were written.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from generated.qdrant import points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.wal.v1 import conflict_pb2, entry_pb2
from server.entry_rows import contents, moment
from server.errors import WalError
from server.wal.conflict_log import ConflictLog, KeptRow

Document: TypeAlias = dict[str, Any]


class ConflictDesk:
    """The operations of a running server, by name."""

    def __init__(self, log: ConflictLog) -> None:
        self._log = log

    @property
    def operations(self) -> dict[str, Callable[[Document], Awaitable[Document]]]:
        """One JSON object in, one out."""
        return {"conflicts-drop": self.drop}

    @property
    def row_operations(self) -> dict[str, Callable[[Document], AsyncIterator[Document]]]:
        """One JSON object in, many out."""
        return {"conflicts-list": self.listed, "conflicts-export": self.exported}

    async def listed(self, _asked: Document) -> AsyncIterator[Document]:
        """Every row, without contents."""
        for row in await asyncio.to_thread(lambda: list(self._log.rows())):
            yield described(row)

    async def exported(self, asked: Document) -> AsyncIterator[Document]:
        """Every row with its contents; {number} = only that one."""
        only = asked.get("number")
        found = False
        for row in await asyncio.to_thread(lambda: list(self._log.rows())):
            if only in (None, row.number):
                found = True
                yield whole(row)
        if only is not None and not found:
            raise no_such_conflict(int(only))

    async def drop(self, asked: Document) -> Document:
        """{numbers} (null: all) → {dropped: [number]}."""
        numbers = asked["numbers"]
        wanted = None if numbers is None else {int(each) for each in numbers}
        return {"dropped": await asyncio.to_thread(self._log.drop, wanted)}


def described(kept: KeptRow) -> Document:
    """A row without what is large in it."""
    row = _parsed(kept)
    point = common.PointId.FromString(row.point_id) if row else common.PointId()
    return {
        "number": kept.number,
        "outcome": _outcome(row) if row else "",
        "collection": row.collection if row else "",
        "tenant": row.tenant if row else "",
        "point": point.uuid or point.num,
        "seq": row.seq if row else 0,
        "method": row.method if row else "",
        "time": moment(row.wall_unix_ns) if row else None,
        "flaw": kept.flaw or ("" if row else "it cannot be decoded"),
    }


def whole(kept: KeptRow) -> Document:
    """A row with Qdrant's point, as JSON and as bytes, and with what was left out."""
    document = described(kept)
    row = _parsed(kept)
    if row is None:
        return document
    remote = points_pb2.RetrievedPoint.FromString(row.remote)
    left_out = entry_pb2.Entry(method=row.method, resolved=row.left_out)
    return {
        **document,
        "was_gone": row.is_gone,
        "remote": MessageToDict(remote, preserving_proto_field_name=True) if row.remote else None,
        "remote_raw": base64.b64encode(row.remote).decode("ascii") or None,
        "left_out": contents(left_out.SerializeToString())["resolved"],
    }


def no_such_conflict(number: int) -> WalError:
    """The error for a row that is not there."""
    return WalError(f"there is no conflict {number}", hint="`understudy wal conflicts list` shows what there is")


def _parsed(kept: KeptRow) -> conflict_pb2.Conflict | None:
    if kept.flaw:
        return None
    try:
        return conflict_pb2.Conflict.FromString(kept.body)
    except DecodeError:
        return None


def _outcome(row: conflict_pb2.Conflict) -> str:
    return conflict_pb2.ConflictOutcome.Name(row.outcome).removeprefix("CONFLICT_OUTCOME_").lower()
