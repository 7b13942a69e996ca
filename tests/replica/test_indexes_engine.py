"""What a payload index changes in the answers of the replica, against the real engine of qdrant-edge-py.

The replica keeps no payload indexes; what Qdrant reads out of one it has to read out of the payload in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from server.replica import tables
from server.rpc import COLLECTIONS, POINTS
from tests.differential.answers import said
from tests.differential.calls import Call, Gap, Refused
from tests.differential.comparison import difference
from tests.differential.engine import Engine
from tests.differential.replica import Replica
from tests.differential.values import as_payload, spelt

NAME = "c"


class Both:
    """The engine and the replica, asked together. Vectors: `d`, dense of size 2, and `s`, sparse."""

    def __init__(self, directory: Path) -> None:
        self._engine = Engine(directory / "engine")
        self._replica = Replica(directory / "replica", "1.20.0")
        request = collections.CreateCollection()
        request.vectors_config.params_map.map["d"].CopyFrom(
            collections.VectorParams(size=2, distance=collections.Distance.Dot)
        )
        request.sparse_vectors_config.map["s"].SetInParent()
        self._done(COLLECTIONS + "Create", request)

    def upsert(self, payloads: Mapping[int, Any], sparse: Mapping[int, Mapping[int, float]] | None = None) -> None:
        """Points by id."""
        points = [pb.PointStruct(id=spelt(number), payload=as_payload(one)) for number, one in payloads.items()]
        for point in points:
            named = point.vectors.vectors.vectors
            named["d"].dense.data.extend([1.0, 0.5])
            if sparse is not None:
                vector = sparse[point.id.num]
                named["s"].sparse.indices.extend(vector)
                named["s"].sparse.values.extend(vector.values())
        self._done(POINTS + "Upsert", pb.UpsertPoints(wait=True, points=points))

    def index(self, field: str, kind: str) -> None:
        """A payload index, by the name of its type."""
        field_type = pb.FieldType.Value(f"FieldType{kind}")
        self._done(
            POINTS + "CreateFieldIndex",
            pb.CreateFieldIndexCollection(wait=True, field_name=field, field_type=field_type),
        )

    def ask(self, name: str, request: Any) -> Any:
        """The answer of both, a Refused too; fails where they differ."""
        request.collection_name = NAME
        call = Call(POINTS + name, request)
        ours, theirs = self._replica.answer(call), self._engine.answer(call)
        assert not isinstance(theirs, Gap), theirs
        assert difference(call, ours, theirs, self._engine.answer) == "", (call, ours, theirs)
        return ours if isinstance(ours, Refused) else said(call.method, ours)

    def ask_here(self, name: str, request: Any) -> Any:
        """The result of the replica, for what the engine cannot be asked."""
        request.collection_name = NAME
        return self._replica.answer(Call(POINTS + name, request)).result

    def _done(self, method: str, request: Any) -> None:
        request.collection_name = NAME
        for side in (self._engine, self._replica):
            outcome = side.answer(Call(method, request))
            assert not isinstance(outcome, Refused | Gap), outcome

    def close(self) -> None:
        """Release both."""
        self._replica.close()
        self._engine.close()


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    made = Both(tmp_path)
    yield made
    made.close()


def only(*numbers: int) -> common.Filter:
    return common.Filter(
        must=[common.Condition(has_id=common.HasIdCondition(has_id=[spelt(number) for number in numbers]))]
    )


# --- formulas read the index ------------------------------------------------------------------------------------------

PLACE = {"lon": 1, "lat": 2}
TIME = "2024-01-01"
READ: Sequence[Any] = (
    5, 5.0, 9.99, "5", True, None, [], [5], [[5]], [5, 5], [5, 5.0], [5, 5.5], [5, None], [5, "x"], [9.99, 9.99],
    TIME, [TIME], [TIME, None], [TIME, TIME], [TIME, "2024-01-01T00:00:00Z"], "2024-01-01T00:00:00.0000019Z",
    PLACE, [PLACE], [PLACE, None], [PLACE, PLACE], [[5, 5]], [200, 5], [True, True], 2**53 + 1,
)  # fmt: skip
OFF_THE_GLOBE = ({"lon": 200, "lat": 5}, {"lon": 5, "lat": 95})
FORMS = {
    "number": (lambda key: pb.Expression(variable=key), 7),
    "place": (lambda key: pb.Expression(geo_distance=pb.GeoDistance(to=key)), {"lon": 3, "lat": 3}),
    "time": (lambda key: pb.Expression(datetime_key=key), "2020-01-01"),
}
KINDS = ("none", "Integer", "Float", "Keyword", "Bool", "Uuid", "Datetime", "Geo", "Text")
ASKED = (
    *(("number", kind) for kind in KINDS),
    *(("place", kind) for kind in ("none", "Geo", "Keyword")),
    *(("time", kind) for kind in ("none", "Datetime", "Keyword")),
    *(("number", f"{kind}[]") for kind in ("none", "Integer", "Text")),
)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Every value in a field of its own for every kind of index."""
    made = Both(tmp_path_factory.mktemp("indexed"))
    keys = dict.fromkeys(key for _, key in ASKED)
    made.upsert({number: {key.removesuffix("[]"): value for key in keys} for number, value in enumerate(READ)})
    for key in keys:
        if not key.startswith("none"):
            # A path with `[]` and one without are two fields, and the same field of the payload.
            made.index(key, key.removesuffix("[]"))
    yield made
    made.close()


@pytest.mark.parametrize(("form", "key"), ASKED)
def test_a_formula_reads_what_the_index_holds(indexed: Both, form: str, key: str) -> None:
    """Each value by itself: it gives its number, or the default, or refuses the query."""
    expression, default = FORMS[form]
    formula = pb.Formula(expression=expression(key), defaults=as_payload({key: default}))
    for number in range(len(READ)):
        prefetch = [pb.PrefetchQuery(filter=only(number))]
        indexed.ask("Query", pb.QueryPoints(query=pb.Query(formula=formula), prefetch=prefetch))


def test_a_formula_knows_no_place_off_the_globe(both: Both) -> None:
    both.upsert({number: {"at": value} for number, value in enumerate(OFF_THE_GLOBE)})
    expression, default = FORMS["place"]
    formula = pb.Formula(expression=expression("at"), defaults=as_payload({"at": default}))
    for number in range(len(OFF_THE_GLOBE)):
        prefetch = [pb.PrefetchQuery(filter=only(number))]
        answer = both.ask("Query", pb.QueryPoints(query=pb.Query(formula=formula), prefetch=prefetch))
        assert isinstance(answer, Refused)


# --- order ------------------------------------------------------------------------------------------------------------

LARGE = 1_700_000_000_000_000_000
"""Nanoseconds of now: doubles are 256 apart there."""


@pytest.mark.parametrize("by_columns", [False, True], ids=["walked", "columns"])
def test_an_order_starts_where_it_says_among_large_integers(
    both: Both, by_columns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_LEAST_POINTS", 0 if by_columns else 10_000)
    values = [LARGE + 8 * number for number in range(100)]
    both.upsert({number: {"n": value} for number, value in enumerate([*values, 2**63 - 1, -(2**63), 3])})
    both.index("n", "Integer")
    for direction, start in product((pb.Asc, pb.Desc), (*values[::9], LARGE + 255, 2**63 - 1, -(2**63), 3)):
        order = pb.OrderBy(key="n", direction=direction, start_from=pb.StartFrom(integer=start))
        page = both.ask("Scroll", pb.ScrollPoints(order_by=order, limit=10))
        assert page.hits


# --- sparse vectors of no likeness ------------------------------------------------------------------------------------

SPARSE: Mapping[int, Mapping[int, float]] = {
    0: {1: 1.0, 2: -1.0},
    1: {1: 1.0, 2: 1.0},
    2: {1: 0.0},
    3: {3: 1.0},
    4: {1: -1.0, 2: 1.0},
    5: {2: 1e-30},
    6: {1: -2.0},
}
SOUGHT: Sequence[Mapping[int, float]] = (
    {1: 1.0, 2: 1.0}, {1: 0.0, 2: 0.0}, {2: 1e-30}, {1: 1.0}, {1: -1.0}, {77: 1.0}, {1: 0.0, 3: 2.0},
)  # fmt: skip


def test_a_sparse_vector_of_score_zero_is_found_under_a_filter_only(both: Both) -> None:
    both.upsert({number: {"k": "x"} for number in SPARSE}, SPARSE)
    filters = (None, only(*SPARSE), only(0, 2, 3))
    zeros = dict.fromkeys(range(len(filters)), 0)
    for sought in SOUGHT:
        vector = pb.SparseVector(indices=sought, values=sought.values())
        near = pb.Query(nearest=pb.VectorInput(sparse=vector))
        for (which, query_filter), limit in product(enumerate(filters), (1, 2, 3, 100)):
            wanted = pb.QueryPoints(query=near, using="s", filter=query_filter, limit=limit)
            zeros[which] += sum(hit.score == 0 for hit in both.ask("Query", wanted).hits)
            below = pb.PrefetchQuery(query=near, using="s", filter=query_filter, limit=100)
            over = pb.Query(nearest=pb.VectorInput(dense=pb.DenseVector(data=[1.0, 0.5])))
            both.ask("Query", pb.QueryPoints(query=over, using="d", prefetch=[below]))
        old = pb.SearchPoints(
            vector=sought.values(), sparse_indices=pb.SparseIndices(data=sought), vector_name="s", limit=100
        )
        both.ask("Search", old)
    assert zeros[0] == 0 < min(zeros[1], zeros[2])


def test_in_groups_a_sparse_vector_of_score_zero_is_found_as_under_a_filter(both: Both) -> None:
    """Qdrant asks for groups with a filter: the field that makes them must not be empty."""
    both.upsert({number: {"k": f"g{number}"} for number in SPARSE}, SPARSE)
    filled = common.Filter(must_not=[common.Condition(is_empty=common.IsEmptyCondition(key="k"))])
    for sought in SOUGHT:
        vector = pb.SparseVector(indices=sought, values=sought.values())
        near = pb.Query(nearest=pb.VectorInput(sparse=vector))
        alone = both.ask("Query", pb.QueryPoints(query=near, using="s", filter=filled, limit=100)).hits
        asked = pb.QueryPointGroups(collection_name="c", query=near, using="s", group_by="k", limit=100, group_size=1)
        grouped = both.ask_here("QueryGroups", asked).groups
        in_groups = {(group.id.string_value, round(hit.score, 4)) for group in grouped for hit in group.hits}
        assert in_groups == {(f"g{hit.id}", round(hit.score, 4)) for hit in alone}
