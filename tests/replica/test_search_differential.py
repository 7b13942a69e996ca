"""Random reads through the unmodified client: the replica beside qdrant-client's local mode, on the same points.

Where the two differ, the server or its engine decides, and the requests here stay clear of it:

- `Get` with an id twice answers once (FACTS 3.1).
- Ids that a prefetch refers to are left out of the whole result (the server's own code); the local mode leaves them out
  of that prefetch. Prefetches here give vectors only.
- `is_empty` and `is_null` of a field condition over a path with several values: any value decides (the engine, see
  test_filters_engines); all values do in the local mode.
- Its vectors are float64 where Qdrant's are float32: scores agree to 1e-4.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as m

from server.replica import catalogue, tables
from tests.replica import workload
from tests.replica.through_client import Refusal, Through

SIZE = 6
POINTS = 80
NAMES = {
    "unnamed": (m.VectorParams(size=SIZE, distance=m.Distance.COSINE), None),
    "euclid": (m.VectorParams(size=SIZE, distance=m.Distance.EUCLID), None),
    "named": (
        {
            "dot": m.VectorParams(size=SIZE, distance=m.Distance.DOT),
            "man": m.VectorParams(size=SIZE, distance=m.Distance.MANHATTAN),
            "cos": m.VectorParams(size=SIZE, distance=m.Distance.COSINE),
            "multi": m.VectorParams(
                size=3,
                distance=m.Distance.COSINE,
                multivector_config=m.MultiVectorConfig(comparator=m.MultiVectorComparator.MAX_SIM),
            ),
        },
        {"plain": m.SparseVectorParams(), "idf": m.SparseVectorParams(modifier=m.Modifier.IDF)},
    ),
}


SEVERAL_VALUES = re.compile(r'"key":"[^"]*\[\][^"]*","is_(empty|null)"')


class Twins:
    """The replica and the local mode with the same points, and random requests for both."""

    def __init__(self, directory: Path, shape: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.through = Through(directory)
        with self.through.store.transaction() as tx:
            tx.set_meta(catalogue.REMOTE_VERSION, "1.20.0")
        self.ours = self.through.client
        self.local = QdrantClient(":memory:")
        self.vectors, self.sparse = NAMES[shape]
        self.points = [self.point(number) for number in range(POINTS)]
        for client in (self.ours, self.local):
            client.create_collection("c", vectors_config=self.vectors, sparse_vectors_config=self.sparse)
            client.upsert("c", self.points, wait=True)
        for field, schema in (("n", "integer"), ("f", "float"), ("k", "keyword"), ("when", "datetime")):
            self.ours.create_payload_index("c", field, schema, wait=True)

    def close(self) -> None:
        self.through.close()
        self.local.close()

    def dense(self, size: int = SIZE) -> list[float]:
        return [self.chance.gauss(0, 1) for _ in range(size)]

    def vector(self, name: str) -> Any:
        if name in ("plain", "idf"):
            indices = self.chance.sample(range(20), self.chance.randint(1, 6))
            return m.SparseVector(indices=indices, values=[self.chance.random() + 0.1 for _ in indices])
        if name == "multi":
            return [self.dense(3) for _ in range(self.chance.randint(1, 4))]
        return self.dense()

    @property
    def names(self) -> list[str]:
        return [*self.vectors, *(self.sparse or {})] if isinstance(self.vectors, dict) else [""]

    def point(self, number: int) -> m.PointStruct:
        identity: Any = number if number % 7 else f"00000000-0000-4000-8000-{number:012d}"
        payload = workload.payload(self.chance)
        payload["n"] = self.chance.choice([number % 9, [number % 5, number % 3], None])
        payload["f"] = round(self.chance.random() * 10, 2)
        payload["k"] = self.chance.choice(["x", "y", "z", ["x", "z"]])
        payload["when"] = f"2024-01-{number % 28 + 1:02d}T00:00:00Z"
        vector: Any = {name: self.vector(name) for name in self.names if self.chance.random() < 0.9}
        return m.PointStruct(id=identity, vector=vector if self.names != [""] else self.dense(), payload=payload)

    def some_id(self) -> Any:
        return self.chance.choice(self.points).id

    def having(self, name: str) -> Any:
        """The id of a point that has the vector."""
        return self.chance.choice([one.id for one in self.points if name == "" or name in one.vector])

    def input(self, name: str, depth: int = 0) -> Any:
        return self.having(name) if depth == 0 and self.chance.random() < 0.3 else self.vector(name)

    def filter(self) -> m.Filter | None:
        while self.chance.random() < 0.5:
            made = workload.filter_(self.chance)
            if not SEVERAL_VALUES.search(made.model_dump_json(exclude_none=True)):
                return made
        return None

    def selectors(self) -> dict[str, Any]:
        payloads = [
            True,
            False,
            ["a", "l[].x", "o.x"],
            m.PayloadSelectorExclude(exclude=["a", "o.y", "l[].x"]),
            m.PayloadSelectorInclude(include=["tags"]),
        ]
        vectors = [True, False, self.names[:2]] if self.names != [""] else [True, False]
        return {"with_payload": self.chance.choice(payloads), "with_vectors": self.chance.choice(vectors)}

    def query(self, name: str, depth: int = 0) -> Any:
        chance = self.chance
        kind = chance.random()
        # In a prefetch, points without a common index tie at 0; which of them a limit keeps is nobody's promise.
        if kind < 0.45 or (depth and name in ("plain", "idf")):
            return m.NearestQuery(nearest=self.input(name, depth))
        if kind < 0.55 and depth == 0:
            mmr = m.Mmr(diversity=chance.choice([None, 0.0, 0.3, 1.0]), candidates_limit=chance.choice([None, 20]))
            return m.NearestQuery(nearest=self.input(name, depth), mmr=mmr)
        if kind < 0.75:
            strategy = chance.choice([None, *m.RecommendStrategy])
            positive = [self.input(name, depth) for _ in range(chance.randint(1, 3))]
            negative = [self.input(name, depth) for _ in range(chance.randint(0, 2))]
            return m.RecommendQuery(recommend=m.RecommendInput(positive=positive, negative=negative, strategy=strategy))
        pairs = [
            m.ContextPair(positive=self.input(name, depth), negative=self.input(name, depth))
            for _ in range(chance.randint(1, 2))
        ]
        if kind < 0.9 or depth:
            # A context alone gives many points the score 0; which of them a limit keeps is nobody's promise.
            return m.DiscoverQuery(discover=m.DiscoverInput(target=self.input(name, depth), context=pairs))
        return m.ContextQuery(context=pairs)

    def prefetch(self, depth: int = 0) -> m.Prefetch:
        name = self.chance.choice(self.names)
        inner = [self.prefetch(depth + 1)] if depth == 0 and self.chance.random() < 0.3 else None
        return m.Prefetch(
            prefetch=inner,
            query=self.query(name, depth=1),
            using=name or None,
            filter=self.filter(),
            limit=self.chance.randint(3, 30),
        )

    def change(self) -> None:
        """The same few writes to both."""
        numbers = self.chance.sample(range(POINTS), 6)
        made = [self.point(number) for number in numbers]
        gone = {point.id for point in made[:3]}
        for client in (self.ours, self.local):
            client.delete("c", [point.id for point in made[:3]], wait=True)
            client.upsert("c", made[3:], wait=True)
        ids = {point.id for point in made[3:]}
        self.points = [one for one in self.points if one.id not in gone | ids] + made[3:]

    def expression(self, depth: int = 0) -> Any:
        """Any expression of a formula; some fail for some points."""
        chance = self.chance
        if depth > 2 or chance.random() < 0.3:
            key = chance.choice(["a", "k", "n"])
            return chance.choice(
                (
                    round(chance.uniform(-3, 3), 2),
                    "f",
                    "$score",
                    "$score[1]",
                    chance.choice(["n", "missing", "o.y"]),
                    m.FieldCondition(key=key, match=m.MatchAny(any=["x", "red"])),
                    m.DatetimeKeyExpression(datetime_key="when"),
                    m.DatetimeExpression(datetime="2024-01-05T00:00:00Z"),
                    m.GeoDistance(geo_distance=m.GeoDistanceParams(origin=m.GeoPoint(lon=1, lat=2), to="geo")),
                )
            )

        def inner() -> Any:
            return self.expression(depth + 1)

        decay = m.DecayParamsExpression(x=inner(), target=chance.choice([None, 2.0]), scale=5.0, midpoint=0.3)
        return chance.choice(
            (
                lambda: m.SumExpression(sum=[inner() for _ in range(3)]),
                lambda: m.MultExpression(mult=[inner(), inner()]),
                lambda: m.MaxExpression(max=[inner(), inner()]),
                lambda: m.MinExpression(min=[inner(), inner()]),
                lambda: m.DivExpression(
                    div=m.DivParams(left=inner(), right=inner(), by_zero_default=chance.choice([None, 1.5]))
                ),
                lambda: m.NegExpression(neg=inner()),
                lambda: m.AbsExpression(abs=inner()),
                lambda: m.SqrtExpression(sqrt=m.AbsExpression(abs=inner())),
                lambda: m.PowExpression(pow=m.PowParams(base=inner(), exponent=2.0)),
                lambda: m.ExpExpression(exp=m.NegExpression(neg=m.AbsExpression(abs=inner()))),
                lambda: m.LnExpression(ln=inner()),
                lambda: m.Log10Expression(log10=m.SumExpression(sum=[1.0, m.AbsExpression(abs=inner())])),
                lambda: m.ExpDecayExpression(exp_decay=decay),
                lambda: m.GaussDecayExpression(gauss_decay=decay),
                lambda: m.LinDecayExpression(lin_decay=decay),
            )
        )()

    def request(self) -> dict[str, Any]:
        """Arguments of query_points."""
        chance = self.chance
        name = chance.choice(self.names)
        common: dict[str, Any] = {"limit": chance.choice([1, 5, 10, 200]), "offset": chance.choice([None, 0, 3])}
        common |= {"query_filter": self.filter(), **self.selectors()}
        kind = chance.random()
        if kind < 0.6:
            return {"query": self.query(name), "using": name or None, **common}
        if kind < 0.7:
            return {"query": None, **common}
        prefetch = [self.prefetch() for _ in range(chance.randint(1, 3))]
        if kind < 0.85:
            rrf = m.Rrf(
                k=chance.choice([None, 5]), weights=chance.choice([None, [1.0 + i for i in range(len(prefetch))]])
            )
            fusion = chance.choice(
                [m.FusionQuery(fusion=m.Fusion.RRF), m.FusionQuery(fusion=m.Fusion.DBSF), m.RrfQuery(rrf=rrf)]
            )
            return {"query": fusion, "prefetch": prefetch, **common}
        return {"query": self.query(name, depth=1), "using": name or None, "prefetch": prefetch, **common}


CASES = [(shape, seed) for seed in range(1, 11) for shape in NAMES]


@pytest.fixture(
    params=[pytest.param(case, marks=() if case[1] == 1 else pytest.mark.soak) for case in CASES],
    ids=[f"{shape}-{seed}" for shape, seed in CASES],
)
def twins(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Twins]:
    shape, seed = request.param
    if shape != "euclid":
        # Filters by columns, as in larger collections; the other shape has its points walked.
        monkeypatch.setattr(tables, "_LEAST_POINTS", 0)
    made = Twins(tmp_path / "store", shape, seed)
    yield made
    made.close()


def both(twins: Twins, name: str, **arguments: Any) -> tuple[Any, Any]:
    """What the two answer; an error of either is an answer."""

    def ask(client: QdrantClient) -> Any:
        try:
            return getattr(client, name)("c", **arguments)
        except (Refusal, ValueError) as error:
            return error

    ours, theirs = ask(twins.ours), ask(twins.local)
    if isinstance(ours, Exception) or isinstance(theirs, Exception):
        assert isinstance(ours, Exception) and isinstance(theirs, Exception), (arguments, ours, theirs)
    return ours, theirs


def same_points(ours: list[Any], theirs: list[Any], why: Any) -> None:
    """Ids (ties aside), scores, payloads and vectors."""
    assert len(ours) == len(theirs), why
    scores = [point.score for point in theirs]
    assert [point.score for point in ours] == pytest.approx(scores, abs=1e-4, rel=1e-4), why
    by_id = {point.id: point for point in theirs}
    for mine, other in zip(ours, theirs, strict=True):
        if mine.id != other.id:
            tied = [one for one in scores if one == pytest.approx(other.score, abs=1e-4, rel=1e-4)]
            # At either end, the point that it ties with may lie beyond the offset or the limit.
            assert len(tied) > 1 or other is theirs[-1] or other is theirs[0], why
        same = by_id.get(mine.id)
        if same is not None:
            assert (mine.payload or {}) == (same.payload or {}), why
            same_vectors(mine.vector, same.vector)


def same_vectors(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert (ours or {}).keys() == theirs.keys()
        for name in theirs:
            same_vectors(ours[name], theirs[name])
    elif isinstance(theirs, m.SparseVector):
        mine = dict(zip(ours.indices, ours.values, strict=True))
        assert mine == pytest.approx(dict(zip(theirs.indices, theirs.values, strict=True)), abs=1e-5)
    elif theirs is None:
        assert ours is None
    elif theirs and isinstance(theirs[0], list):
        assert len(ours) == len(theirs)
        for row, other in zip(ours, theirs, strict=True):
            assert row == pytest.approx(other, abs=1e-5)
    else:
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_queries(twins: Twins) -> None:
    for turn in range(150):
        if turn % 10 == 9:
            twins.change()
        request = twins.request()
        ours, theirs = both(twins, "query_points", **request)
        if not isinstance(ours, Exception):
            same_points(ours.points, theirs.points, request)


def test_formulas(twins: Twins) -> None:
    scored = 0
    for _ in range(120):
        defaults = {"missing": 2.0, "$score[1]": 0.5, "geo": {"lon": 3.0, "lat": 4.0}}
        chosen = {name: value for name, value in defaults.items() if twins.chance.random() < 0.8}
        request = {
            "query": m.FormulaQuery(formula=twins.expression(), defaults=chosen),
            "prefetch": [twins.prefetch() for _ in range(2)],
            "limit": 30,
            "score_threshold": twins.chance.choice([None, 0.0]),
        }
        ours, theirs = both(twins, "query_points", **request)
        if not isinstance(ours, Exception):
            scored += 1
            same_points(ours.points, theirs.points, request)
    assert scored > 30


def test_scrolls_counts_and_gets(twins: Twins) -> None:
    for _ in range(60):
        twins.change()
        query, parts = twins.filter(), twins.selectors()
        ours, theirs = both(twins, "count", count_filter=query)
        assert ours == theirs, query
        request = {"scroll_filter": query, "limit": twins.chance.choice([1, 7, 500]), **parts}
        if twins.chance.random() < 0.5:
            request["offset"] = twins.some_id()
        (ours, our_next), (theirs, their_next) = both(twins, "scroll", **request)
        # The local mode sorts UUIDs before numbers, so only pages of one kind of id can be compared.
        if request["limit"] == 500 and "offset" not in request:
            assert our_next is None and their_next is None
            assert sorted(map(str, (one.id for one in ours))) == sorted(map(str, (one.id for one in theirs))), request
            by_id = {one.id: one for one in theirs}
            for one in ours:
                assert (one.payload or {}) == (by_id[one.id].payload or {})
                same_vectors(one.vector, by_id[one.id].vector)
        ids = list(dict.fromkeys(twins.some_id() for _ in range(5)))
        ours, theirs = both(twins, "retrieve", ids=[*ids, 5000], **parts)
        assert [one.id for one in ours] == [one.id for one in theirs] == ids


def test_ordered_scrolls(twins: Twins) -> None:
    for _ in range(40):
        key = twins.chance.choice(["n", "f", "when"])
        start = {"n": 3, "f": 4.5, "when": "2024-01-10T00:00:00Z"}[key] if twins.chance.random() < 0.5 else None
        order = m.OrderBy(key=key, direction=twins.chance.choice(list(m.Direction)), start_from=start)
        request = {"order_by": order, "scroll_filter": twins.filter(), "limit": twins.chance.choice([3, 500])}
        (ours, _), (theirs, _) = both(twins, "scroll", **request)
        values = [one.order_value for one in ours]
        assert values == pytest.approx([one.order_value for one in theirs]), request
        if request["limit"] == 500:
            assert {(str(one.id), one.order_value) for one in ours} == {(str(o.id), o.order_value) for o in theirs}


def test_groups(twins: Twins) -> None:
    for _ in range(40):
        name = twins.chance.choice(twins.names)
        request = {
            "group_by": twins.chance.choice(["k", "n", "a"]),
            "query": twins.query(name, depth=1),
            "using": name or None,
            "query_filter": twins.filter(),
            "limit": twins.chance.choice([1, 3, 50]),
            "group_size": twins.chance.choice([1, 4]),
            "with_payload": ["k"],
        }
        ours, theirs = both(twins, "query_points_groups", **request)
        if isinstance(ours, Exception):
            continue
        scores = [[hit.score for hit in group.hits] for group in theirs.groups]
        assert len(ours.groups) == len(scores), request
        for group, expected in zip(ours.groups, scores, strict=True):
            assert [hit.score for hit in group.hits] == pytest.approx(expected, abs=1e-4, rel=1e-4), request


def test_facets(twins: Twins) -> None:
    for _ in range(30):
        request = {"key": twins.chance.choice(["k", "n"]), "facet_filter": twins.filter(), "limit": 20}
        ours, theirs = both(twins, "facet", **request)
        assert [(hit.value, hit.count) for hit in ours.hits] == [(hit.value, hit.count) for hit in theirs.hits]


def test_matrix_over_everything(twins: Twins) -> None:
    name = twins.names[0]
    request = {"sample": 500, "limit": 4, "using": name or None, "query_filter": twins.filter()}
    ours, theirs = both(twins, "search_matrix_pairs", **request)
    assert sorted(pair.score for pair in ours.pairs) == pytest.approx(
        sorted(pair.score for pair in theirs.pairs), abs=1e-4, rel=1e-4
    )
    ours, theirs = both(twins, "search_matrix_offsets", **request)
    assert sorted(map(str, ours.ids)) == sorted(map(str, theirs.ids))
    assert len(ours.scores) == len(theirs.scores) == len(ours.offsets_row) == len(ours.offsets_col)
