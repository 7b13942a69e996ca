"""Random payloads, filters and vectors from a seed, for the tests that compare engines."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

from qdrant_client import models as m

FIELDS = ("a", "b", "c", "tags", "o.x", "l[].x", "l", "o")
WORDS = ("red", "blue", "Night sky", "night", "", "ig", "sky red", "6f9619ff-8b86-d011-b42d-00cf4fc964ff")
TIMES = ("2024-01-02T03:04:05Z", "2024-01-02", "2024-05-06 07:08:09.5+02:00", "2023-12-31T23:59", "not a time")


def scalar(chance: random.Random) -> Any:
    """Any scalar that a payload may hold."""
    return chance.choice(
        (
            None,
            True,
            False,
            chance.randint(-3, 3),
            float(chance.randint(-3, 3)),
            chance.randint(-30, 30) / 10,
            chance.choice(WORDS),
            chance.choice(TIMES),
            2**53 + 1,
        )
    )


def place(chance: random.Random) -> dict[str, float]:
    """A geo point near the origin."""
    return {"lon": chance.randint(-5, 5) / 2, "lat": chance.randint(-5, 5) / 2}


def value(chance: random.Random, depth: int = 0) -> Any:
    """Any value: scalar, array, object, geo point."""
    kind = chance.random()
    if kind < 0.5 or depth > 2:
        return scalar(chance)
    if kind < 0.75:
        return [value(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    if kind < 0.85:
        return place(chance)
    return {name: value(chance, depth + 1) for name in ("x", "y") if chance.random() < 0.7}


def payload(chance: random.Random) -> dict[str, Any]:
    """A payload in which every field may be missing."""
    made = {name: value(chance) for name in ("a", "b", "c", "tags") if chance.random() < 0.8}
    if chance.random() < 0.7:
        made["o"] = {"x": value(chance, 1), "y": scalar(chance)}
    if chance.random() < 0.7:
        made["l"] = [{"x": scalar(chance), "y": scalar(chance)} for _ in range(chance.randint(0, 3))]
    return made


def match(chance: random.Random) -> Any:
    """A match condition. Texts are left out: engines differ, see test_filters."""
    words = [chance.choice(WORDS) for _ in range(chance.randint(1, 3))]
    numbers = [chance.randint(-3, 3) for _ in range(chance.randint(1, 3))]
    return chance.choice(
        (
            m.MatchValue(value=chance.choice(WORDS)),
            m.MatchValue(value=chance.randint(-3, 3)),
            m.MatchValue(value=chance.random() < 0.5),
            m.MatchAny(any=words),
            m.MatchAny(any=numbers),
            m.MatchExcept(**{"except": words}),
            m.MatchExcept(**{"except": numbers}),
        )
    )


def bounds(chance: random.Random, low: Any, high: Any) -> dict[str, Any]:
    """One or two bounds of a range."""
    made = {}
    if chance.random() < 0.7:
        made[chance.choice(("gt", "gte"))] = low
    if chance.random() < 0.7 or not made:
        made[chance.choice(("lt", "lte"))] = high
    return made


def geo(chance: random.Random) -> dict[str, Any]:
    """A geo condition."""
    lon, lat = chance.randint(-3, 1), chance.randint(-3, 1)
    ring = [(lon, lat), (lon + 4, lat), (lon + 4, lat + 3), (lon + 1, lat + 4), (lon, lat)]
    points = [m.GeoPoint(lon=x, lat=y) for x, y in ring]
    return chance.choice(
        (
            {"geo_radius": m.GeoRadius(center=m.GeoPoint(lon=lon, lat=lat), radius=chance.randint(50_000, 300_000))},
            {
                "geo_bounding_box": m.GeoBoundingBox(
                    top_left=m.GeoPoint(lon=lon, lat=lat + 3), bottom_right=m.GeoPoint(lon=lon + 3, lat=lat)
                )
            },
            {"geo_polygon": m.GeoPolygon(exterior=m.GeoLineString(points=points))},
        )
    )


def condition(chance: random.Random, depth: int = 0) -> Any:
    """Any condition."""
    key = chance.choice(FIELDS)
    kind = chance.random()
    if kind < 0.35:
        return m.FieldCondition(key=key, match=match(chance))
    if kind < 0.5:
        low = chance.randint(-3, 2)
        return m.FieldCondition(key=key, range=m.Range(**bounds(chance, low, low + chance.randint(0, 3))))
    if kind < 0.55:
        low, high = datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 5, 6, 5, 8, 9, 500_000, tzinfo=UTC)
        return m.FieldCondition(key=key, range=m.DatetimeRange(**bounds(chance, low, high)))
    if kind < 0.62:
        return m.FieldCondition(key=key, **geo(chance))
    if kind < 0.68:
        low = chance.randint(0, 2)
        return m.FieldCondition(key=key, values_count=m.ValuesCount(**bounds(chance, low, low + 1)))
    if kind < 0.74:
        return m.IsEmptyCondition(is_empty=m.PayloadField(key=key))
    if kind < 0.78:
        return m.FieldCondition(key=key, is_empty=chance.random() < 0.5)
    if kind < 0.82:
        return m.FieldCondition(key=key, is_null=chance.random() < 0.5)
    if kind < 0.86:
        return m.HasIdCondition(has_id=chance.sample(range(60), 5))
    if kind < 0.93 or depth > 1:
        inner = m.FieldCondition(key=chance.choice(("x", "y")), match=match(chance))
        return m.NestedCondition(
            nested=m.Nested(key=chance.choice(("l", "l[]", "tags")), filter=m.Filter(must=[inner]))
        )
    return filter_(chance, depth + 1)


def filter_(chance: random.Random, depth: int = 0) -> m.Filter:
    """A filter of one or a few conditions."""

    def some(most: int) -> list[Any] | None:
        return [condition(chance, depth) for _ in range(chance.randint(1, most))] if chance.random() < 0.4 else None

    made = m.Filter(must=some(2), should=some(3), must_not=some(2))
    if chance.random() < 0.15:
        conditions = [condition(chance, depth) for _ in range(3)]
        made.min_should = m.MinShould(conditions=conditions, min_count=chance.randint(1, 3))
    return made
