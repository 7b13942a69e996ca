"""PURE. What Qdrant checks in the shapes of geo conditions.

Promises: the status and text of Qdrant for rings that are none and for coordinates that no place has. Does not say
which places lie in a shape: `conditions.py` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from generated.qdrant import qdrant_common_pb2 as common
from server.replica.refusal import bad_body, invalid
from server.replica.scalars import is_on_earth

_RING_POINTS_LEAST = 4


def check(condition: common.FieldCondition, place: str, *, is_strict: bool) -> None:
    """Raise Refusal for a shape that Qdrant refuses; `is_strict`: as Qdrant does since 1.19."""
    if is_strict:
        _check_places(condition, place)
        if condition.geo_polygon.HasField("exterior"):
            _check_rings(condition.geo_polygon, f"{place}.geo_polygon")
    if condition.HasField("geo_polygon") and not condition.geo_polygon.HasField("exterior"):
        raise invalid("Malformed GeoPolygon type - field `exterior` is required")


def _check_rings(polygon: common.GeoPolygon, place: str) -> None:
    if not polygon.exterior.points:
        raise bad_body(f"{place}.exterior", "value invalid, must not be empty")
    for name, ring in (("exterior", polygon.exterior), *(("interiors", ring) for ring in polygon.interiors)):
        if len(ring.points) < _RING_POINTS_LEAST:
            what = f"value invalid, the size must be at least {_RING_POINTS_LEAST}, got {len(ring.points)}"
            raise bad_body(f"{place}.{name}", what)
        if ring.points[0] != ring.points[-1]:
            what = "value invalid, the first and the last points should be same to form a closed line"
            raise bad_body(f"{place}.{name}", what)


def _check_places(condition: common.FieldCondition, place: str) -> None:
    if condition.HasField("geo_radius"):
        _check_each([condition.geo_radius.center], f"{place}.geo_radius.center")
    if condition.HasField("geo_bounding_box"):
        box = condition.geo_bounding_box
        _check_each([box.top_left], f"{place}.geo_bounding_box.top_left")
        _check_each([box.bottom_right], f"{place}.geo_bounding_box.bottom_right")
    for ring in (condition.geo_polygon.exterior, *condition.geo_polygon.interiors):
        _check_each(ring.points, f"{place}.geo_polygon")


def _check_each(given: Iterable[common.GeoPoint], place: str) -> None:
    for point in given:
        if not is_on_earth(point.lon, point.lat):
            lat, lon = map(_written, (point.lat, point.lon))
            raise bad_body(
                f"{place}.geo",
                f"Wrong format of GeoPoint payload: expected `lat` = {lat} within [-90;90] and `lon` = {lon} "
                "within [-180;180]",
            )


def _written(number: float) -> str:
    """As Rust writes it."""
    return "NaN" if math.isnan(number) else repr(number).removesuffix(".0")
