"""`understudy explain`: how the local copy answers a call.

Promises: only reads are sent; for a write or a call that is refused offline it says what would happen, and sends
nothing. The answer comes from the local copy whether Qdrant is up or not, and counts like any read.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from server.cli.options import AsJson, ConfigFile, settings_from
from server.cli.output import as_json, console, facts, table
from server.clock import SystemClock
from server.errors import ConfigError
from server.rpc import (
    AS_OF,
    COMPLETENESS,
    EXPLAIN,
    METHODS,
    PENDING,
    PLAN,
    SOURCE,
    Call,
    Code,
    Metadata,
    Method,
    Offline,
    Reply,
)

_OFFLINE = {
    Offline.LOGGED: "checked, logged, applied to the local copy, replayed when Qdrant is back; nothing was sent now",
    Offline.SERVED: "answered by the local copy",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples:\n\n\b\n"
        'understudy explain Count \'{"collection_name": "documents"}\'\n'
        "understudy explain Query @request.json --address 127.0.0.1:6334 --json\n"
        "understudy explain Upsert                    what happens to a write while Qdrant is away"
    )(explain)


def explain(  # noqa: PLR0917  (typer wants them so)
    method: Annotated[str, typer.Argument(help="Query, Points/Query or /qdrant.Points/Query.")],
    request: Annotated[str, typer.Argument(help="The request as protobuf JSON; @FILE or - for standard input.")] = "{}",
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of the proxy, or of `understudy replica`; https:// for TLS.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="The key that the application uses.", envvar="QDRANT_API_KEY")
    ] = None,
    timeout_seconds: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait for the answer.", min=0.1)
    ] = 30.0,
    as_json_: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Send a read to the local copy and show how it was answered: filters, index, exact scans, counts, times."""
    row = method_named(method)
    if row.offline is not Offline.SERVED:
        text = f"refused: {row.why_refused}" if row.offline is Offline.REFUSED else _OFFLINE[row.offline]
        if as_json_:
            as_json({"method": row.path, "offline": row.offline.value, "why": text})
        else:
            console.print(escape(f"{row.path.removeprefix('/qdrant.')} while Qdrant is away: {text}"))
        return
    target = address or settings_from(config).settings.listen
    metadata: Metadata = ((EXPLAIN, "local"), *((("api-key", api_key),) if api_key else ()))
    reply, seconds = asyncio.run(_ask(target, Call(row.path, body_of(row, request), metadata), timeout_seconds))
    document = explained(row, reply, seconds)
    if as_json_:
        as_json(document)
    else:
        show(document)
    if not reply.is_ok:
        raise typer.Exit(1)


def method_named(text: str) -> Method:
    """The row that a short name means. Raises ConfigError."""
    found = [row for path, row in METHODS.items() if path in (text, f"/qdrant.{text}")]
    # Collections and points both have a Get; points are meant more often.
    found = found or [row for path, row in METHODS.items() if path.rpartition("/")[2] == text]
    if not found:
        raise ConfigError(f"there is no method `{text}`", hint="docs/compatibility.md lists them")
    return found[0]


def body_of(row: Method, text: str) -> bytes:
    """The request in JSON form, serialized. Raises ConfigError."""
    from google.protobuf.json_format import ParseDict, ParseError

    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        return ParseDict(json.loads(text), row.request()).SerializeToString()
    except (OSError, ValueError, ParseError) as error:
        hint = f"It is the message {row.request.DESCRIPTOR.full_name} as protobuf JSON"
        raise ConfigError(f"the request cannot be read ({error})", hint=hint) from error


async def _ask(target: str, call: Call, timeout_seconds: float) -> tuple[Reply, float]:
    from dataclasses import replace

    from server.upstream import Upstream, parse_target

    clock = SystemClock()
    where, secure = parse_target(target)
    upstream = Upstream(where, clock=clock, secure=secure, name=target)
    started = clock.monotonic()
    try:
        reply = await upstream.handle(replace(call, deadline=started + timeout_seconds))
        return reply, clock.monotonic() - started
    finally:
        await upstream.close()


def explained(row: Method, reply: Reply, seconds: float) -> dict[str, Any]:
    """The answer and how it came about, as a document."""
    trailers = {key: text for key, text in reply.trailers if isinstance(text, str)}
    document: dict[str, Any] = {
        "method": row.path,
        "code": Code(reply.code).name,
        "details": reply.details,
        "source": trailers.get(SOURCE, ""),
        "completeness": trailers.get(COMPLETENESS, ""),
        "as_of": trailers.get(AS_OF, ""),
        "pending": trailers.get(PENDING, ""),
        "milliseconds": round(1000 * seconds, 3),
        "plan": json.loads(trailers[PLAN]) if PLAN in trailers else None,
    }
    if reply.is_ok:
        document["answer"] = _answer(row, reply.body)
    return document


def _answer(row: Method, body: bytes) -> Any:
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message_factory import GetMessageClass

    from generated.qdrant import collections_service_pb2, points_service_pb2, qdrant_pb2

    _, service, name = row.path.split("/")
    for file in (points_service_pb2, collections_service_pb2, qdrant_pb2):
        described = file.DESCRIPTOR.services_by_name.get(service.removeprefix("qdrant."))
        if described is not None:
            response = GetMessageClass(described.methods_by_name[name].output_type)
            return MessageToDict(response.FromString(body), preserving_proto_field_name=True)
    raise AssertionError(row.path)


def show(document: dict[str, Any]) -> None:
    """The document as a person reads it."""
    plan = document["plan"] or {"steps": [], "left_out": 0}
    answered = document["code"] + (f"  {document['details']}" if document["details"] else "")
    facts(
        [
            ("call", document["method"].removeprefix("/qdrant.")),
            ("answered", escape(answered)),
            ("by", document["source"] or "the replica"),
            ("local copy", f"{document['completeness'] or 'n/a'}, as of entry {document['as_of'] or '?'}"),
            ("pending", document["pending"] or "n/a"),
            ("took", f"{document['milliseconds']} ms, as seen from here"),
        ]
    )
    console.print()
    if not plan["steps"]:
        console.print("no steps: the call was refused before points were looked at, or it is about collections only")
        return
    made = table("step", "what", "done at ms#")
    for step in plan["steps"]:
        what = ", ".join(
            f"{key} {_told(one)}" for key, one in step.items() if key not in ("step", "at_ms") and one != ""
        )
        made.add_row(escape(step["step"]), escape(what), f"{step['at_ms']:.2f}")
    console.print(made)
    if plan["left_out"]:
        console.print(f"and {plan['left_out']} more steps")


def _told(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
