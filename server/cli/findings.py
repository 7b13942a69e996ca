"""PURE. What `doctor` finds: the form of a finding, and those that the status of a running server gives.

Promises: each finding that is not OK says what to do next. Reads the document of `/status`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from server.cli.output import duration
from server.replay.progress import ReplayState


class Verdict(Enum):
    """How a check came out."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, how it is, what to do."""

    about: str
    verdict: Verdict
    text: str


# Why a replay stands still, and what to do about it.
_STANDSTILLS: dict[str, tuple[Verdict, str]] = {
    ReplayState.WAITING_UPSTREAM.value: (Verdict.NOTE, "it goes on by itself when Qdrant is back"),
    ReplayState.BACKING_OFF.value: (Verdict.NOTE, "Qdrant failed a write; it is tried again by itself"),
    ReplayState.BREAKER_OPEN.value: (
        Verdict.BAD,
        "Qdrant is up and fails every write: see its own log; then `understudy sync` tries at once",
    ),
    ReplayState.WAITING_CREDENTIAL.value: (
        Verdict.BAD,
        "Qdrant refuses the API key: set vectorstore.api_key, or let a client call with a good one",
    ),
    ReplayState.HALTED.value: (
        Verdict.BAD,
        "retry or drop what is in quarantine: `understudy wal quarantine list`",
    ),
    ReplayState.LOG_FAILED.value: (Verdict.BAD, "look at the disk, then run `understudy wal verify`"),
}


def of_status(document: dict[str, Any]) -> Iterator[Finding]:
    """What is wrong with the server that gave this status, the worst of each part."""
    yield _state(document)
    yield _replay(document)
    yield from _wal(document.get("wal") or {})
    if refused := document.get("quarantine"):
        text = f"Qdrant refused {refused} writes, they are kept: run `understudy wal quarantine list`"
        yield Finding("quarantine", Verdict.NOTE, text)
    if kept := (document.get("conflicts") or {}).get("kept"):
        text = f"others changed {kept} points that writes of outages were about: run `understudy wal conflicts list`"
        yield Finding("conflicts", Verdict.NOTE, text)
    replica = document.get("replica") or {}
    if not replica.get("pid"):
        yield Finding("replica", Verdict.BAD, "its process does not run: the server's log says why")
    elif replica.get("restarts"):
        text = f"its process was restarted {replica['restarts']} times: the server's log says why"
        yield Finding("replica", Verdict.NOTE, text)
    yield from _collections(document)


def _state(document: dict[str, Any]) -> Finding:
    state, since, reason = (str(document.get(key) or "") for key in ("state", "since", "reason"))
    if document.get("upstream") is None:
        return Finding("state", Verdict.NOTE, "a local store: no Qdrant is configured")
    if state == "remote":
        return Finding("state", Verdict.OK, f"remote since {since}: Qdrant answers")
    what = {
        "local": "Understudy answers. Bring Qdrant back; nothing else is needed",
        "draining": "Qdrant is back and takes what is pending; nothing is needed",
    }.get(state, "see the server's log")
    return Finding("state", Verdict.NOTE, f"{state} since {since} ({reason}): {what}")


def _replay(document: dict[str, Any]) -> Finding:
    replay, pending = document.get("replay") or {}, document.get("pending") or 0
    if not pending:
        return Finding("replay", Verdict.OK, "nothing is pending")
    text = f"{pending} writes pending, the oldest for {duration(document.get('oldest_pending_age_seconds'))}"
    if replay.get("left_seconds") is not None:
        text += f", done in about {duration(replay['left_seconds'])}"
    verdict, advice = _STANDSTILLS.get(str(replay.get("state")), (Verdict.OK, ""))
    if advice:
        text += f"; {replay['state']}: {advice}"
    if replay.get("last_error"):
        text += f" (last error: {replay['last_error']})"
    return Finding("replay", verdict, text)


def _wal(wal: dict[str, Any]) -> Iterator[Finding]:
    if damage := wal.get("damage"):
        yield Finding("log", Verdict.BAD, f"{len(damage)} problems, first: {damage[0]}. Run `understudy wal verify`")
    if wal.get("latched"):
        text = f"takes no more writes: {wal['latched']}. It tries again by itself; `understudy wal reopen` tries now"
        yield Finding("log", Verdict.BAD, text)
    elif wal.get("takes_no_writes"):
        yield Finding("log", Verdict.BAD, f"takes no writes: {wal['takes_no_writes']}. Free some space")


def _collections(document: dict[str, Any]) -> Iterator[Finding]:
    copies = {row.get("collection"): row for row in document.get("hydration") or []}
    for row in document.get("collections") or []:
        name, completeness = row.get("name"), row.get("completeness")
        copy = copies.get(name, {})
        if completeness == "complete":
            continue
        about, held = f"collection {name}", f"{row.get('points', 0)} of {row.get('expected_points', 0)} points are here"
        if copy.get("state") == "failed":
            advice = f"the copy failed: {copy.get('reason')}. It is tried again; `understudy hydrate {name}` tries now"
            yield Finding(about, Verdict.BAD, f"{completeness}, {held}; {advice}")
        elif copy.get("state") == "left out":
            yield Finding(about, Verdict.NOTE, f"left out of the copy ({copy.get('reason')}): an outage shows it empty")
        else:
            yield Finding(about, Verdict.NOTE, f"{completeness}, {held}: answers of an outage say so until it is whole")
