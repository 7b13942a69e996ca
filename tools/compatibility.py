"""Make `docs/compatibility.md` from the offline table in `server/rpc.py` and the tests of its rows.

One command, `make docs`; with `--check` it writes nothing and fails when the page is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor

from generated.qdrant import collections_pb2, points_pb2, qdrant_common_pb2
from server.rpc import METHODS, Kind, Method, Offline
from tests.proxy.offline_data import message
from tests.proxy.offline_fields import Effect, Line, is_map, line_of, messages_below, set_fields, short
from tests.proxy.offline_reads import READS, Case, How
from tests.proxy.offline_writes import WRITES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "compatibility.md"
TEST = "tests/proxy/test_offline_table.py"
_MOST_TITLES = 3

HEAD = """\
# Will my call work offline?

While Qdrant is up, every call is forwarded as it came: whatever Qdrant can do works. (Headers whose text is not visible
ASCII, which gRPC's specification does not allow, stay behind.) This page is about the time while it is away. Each line
is held by a test that asks the same thing before an outage and during it and compares the answers.

- **Answered by the replica**: the answer equals Qdrant's, with trailing metadata that says that it is local, how whole
  and how fresh (`x-understudy-source`, `-stale-warning`, `-completeness`, `-as-of`, `-pending`).
- **Logged, applied, replayed**: the write is on disk before it is acknowledged, later reads see it, and Qdrant gets it
  when it is back.
- **Refused**: UNAVAILABLE with the reason. Never a wrong or partial answer. So is an UpdateBatch that was under way
  when Qdrant went away, if doing it twice may not be doing it once (see
  [batches](decisions/batch-stops-like-qdrant.md)).

`understudy explain` shows for a call of your own whether it is answered locally, and how.

This page is made from `server/rpc.py` and `tests/proxy/offline_*.py` by `make docs`.

## Calls

| call | Qdrant is up | Qdrant is away | test |
|---|---|---|---|
"""

TAIL = """
## Where a local answer differs from Qdrant's

- `Get` of a collection tells the last real info of Qdrant with the counts, the configuration and the payload indexes
  of the replica. How many points a payload index holds is counted where that is cheap, else as Qdrant told it last;
  numbers of segments and of indexed vectors are not kept.
- Points carry no `shard_key`.
- UpdateAliases of which one action is refused changes nothing. Qdrant keeps the actions before it, by its source, of
  which the newest means to keep none either.
- The limits of a collection's strict mode are enforced with the status and words of Qdrant 1.18, from its source and
  its own tests; they were not run against a server. Not enforced: the sizes of vectors and payloads in bytes, which
  only the server's files tell, and its rate and memory limits, which are about its load. `max_points_count` is judged
  where the whole collection is here, and at once; Qdrant counts anew every 32 writes, so it may still take a write that
  is refused here, or refuse at replay, into the quarantine, one that found room here after a deletion.
- Text conditions on a field whose text index has stopwords of a language, or the multilingual or code tokenizer, are
  refused with UNAVAILABLE: they need the server's language tables.
- A match of one text that reads as a UUID, on a field with an index of integers, floats or times: Qdrant (1.18, and the
  engine of 1.20) finds no point where its plan asks that index, and the point where it does not. The replica finds it.
- A range with both `gt` and `gte` (or `lt` and `lte`) on a field with an index: every bound that is set holds here.
  Where its plan asks that index alone, the engine of Qdrant looks at `gt` (`lt`) only; elsewhere at all of them.
- MMR that chooses among more than 16,384 points is refused with UNAVAILABLE.
- Groups of a search without prefetches and MMR are the best of all points, in collections with no more points than
  `replica.response_max_points`; in larger ones they are gathered in its rounds. Qdrant gives up after ten rounds of
  as many points as the groups can hold, and points whose field is neither a text nor a whole number come again in each:
  with few and small groups asked for it may find fewer of them.
- A recommendation by the average of examples of several sizes is refused with INVALID_ARGUMENT. Qdrant fills up what is
  too short with zeros, and before 1.19.1 cuts the longer of the positive and the negative average, where the result has
  the size of the searched vector: it then answers another query than was asked, which it counts as a fault (its issues
  10369 and 10524).
- `usage` is left out.
- `operation_id` is the number of the write in Understudy's log.
- Where releases of Qdrant differ, the replica follows the release that it has seen last; the differences are listed in
  `tests/differential` and `tests/replica/test_filters_engines.py`.
"""

_FORMS: tuple[tuple[str, str, Descriptor], ...] = (
    (
        "Query forms",
        "What `query` may be, in Query, QueryBatch, QueryGroups and prefetches.",
        points_pb2.Query.DESCRIPTOR,
    ),
    ("Kinds of vectors in a query", "What stands for a vector.", points_pb2.VectorInput.DESCRIPTOR),
    ("Kinds of vectors in a write", "", points_pb2.Vector.DESCRIPTOR),
    ("Filters", "", qdrant_common_pb2.Filter.DESCRIPTOR),
    ("Conditions", "", qdrant_common_pb2.Condition.DESCRIPTOR),
    ("Conditions on a field", "", qdrant_common_pb2.FieldCondition.DESCRIPTOR),
    ("Match conditions", "", qdrant_common_pb2.Match.DESCRIPTOR),
    ("Formula expressions", "", points_pb2.Expression.DESCRIPTOR),
    ("Search parameters", "", points_pb2.SearchParams.DESCRIPTOR),
    ("Operations of a batch", "", points_pb2.PointsUpdateOperation.DESCRIPTOR),
    ("Parameters of a text index", "", collections_pb2.TextIndexParams.DESCRIPTOR),
)


def page() -> str:
    """The whole page."""
    cases = [(case, set(set_fields(message(case.method, case.request)))) for case in (*READS, *WRITES)]
    lines = [HEAD.rstrip("\n"), *map(_call, METHODS.values()), _HEALTH]
    for title, text, descriptor in _FORMS:
        lines += [
            "",
            f"## {title}",
            "",
            *([text, ""] if text else []),
            "| form | offline | shown by |",
            "|---|---|---|",
        ]
        lines += [_form(descriptor, field.name, cases) for field in descriptor.fields]
    lines += ["", "## Fields of each request", "", _FIELDS_INTRODUCTION, ""]
    for row in METHODS.values():
        if row.offline is not Offline.REFUSED and row.request.DESCRIPTOR.fields:
            lines += _fields(f"{_call_name(row)}: `{short(row.request.DESCRIPTOR)}`", row.request.DESCRIPTOR)
    lines += ["", "## Fields of what requests hold", ""]
    for name, descriptor in _held():
        lines += _fields(f"`{name}`", descriptor)
    return "\n".join(lines) + "\n" + TAIL


_HEALTH = (
    f"| grpc.health.v1 Check, Watch | answered by Understudy | answered by Understudy | `{TEST}::test_offline_health` |"
)
_FIELDS_INTRODUCTION = (
    "*Honoured*: the answer follows the field. *Kept and told*: it comes back when asked for. *Accepted, no effect*: "
    "the answer is the same without it."
)


def _call_name(row: Method) -> str:
    return row.path.removeprefix("/qdrant.")


def _call(row: Method) -> str:
    if row.offline is Offline.REFUSED:
        offline, test = f"refused: {row.why_refused}", "test_offline_refused"
    elif row.offline is Offline.LOGGED:
        offline, test = row.offline.value, "test_offline_write"
    else:
        offline, test = "answered by the replica", "test_offline"
    online = "forwarded, then mirrored" if row.kind is Kind.WRITE else "forwarded"
    return f"| {_call_name(row)} | {online} | {offline} | `{TEST}::{test}[{_call_name(row)}]` |"


def _form(descriptor: Descriptor, field: str, cases: list[tuple[Case, set[tuple[str, str]]]]) -> str:
    line = line_of(short(descriptor), field)
    setting = [case for case, found in cases if (short(descriptor), field) in found]

    def rank(case: Case) -> tuple[bool, bool, bool, int]:
        """Cases that are about the form come first, then those that show all of a request, then short ones."""
        is_about = any(name in case.title for name in (field, field.replace("_", " ")))
        refused = case.how is How.REFUSED and line.effect is not Effect.REFUSED
        return refused, not is_about, "every" not in case.title, len(str(case.request))

    titles = list(dict.fromkeys(str(case) for case in sorted(setting, key=rank)))[:_MOST_TITLES]
    return f"| `{field}` | {_told(line)} | {'; '.join(titles)} |"


def _told(line: Line) -> str:
    return f"{line.effect.value}: {line.why}" if line.why else line.effect.value


def _fields(title: str, descriptor: Descriptor) -> list[str]:
    groups: dict[tuple[Effect, str], list[str]] = {}
    for field in descriptor.fields:
        line = line_of(short(descriptor), field.name)
        groups.setdefault((line.effect, line.why), []).append(f"`{field.name}`")
    order = list(Effect)
    listed = sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    told = [f"{effect.value}: {', '.join(names)}" + (f" ({why})" if why else "") for (effect, why), names in listed]
    return [f"- {title}: {'; '.join(told)}"]


def _held() -> Iterator[tuple[str, Descriptor]]:
    """The messages below the requests that have a table or a line of their own to tell."""
    requests: set[str] = {short(row.request.DESCRIPTOR) for row in METHODS.values()}
    shown = {short(descriptor) for _, _, descriptor in _FORMS}
    found: dict[str, Any] = {}
    for row in METHODS.values():
        if row.offline is not Offline.REFUSED:
            found |= messages_below(row.request.DESCRIPTOR)
    for name, descriptor in sorted(found.items()):
        if name not in requests | shown and descriptor.fields and not is_map(descriptor):
            yield name, descriptor


def main() -> None:
    """Write the page, or check it with `--check`."""
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text() != page():
            raise SystemExit("docs/compatibility.md is stale, run `make docs`")
        print("docs/compatibility.md is fresh")
    else:
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
