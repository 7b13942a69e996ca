"""PURE. Reading scalars out of payload values as Qdrant reads them: numbers, times, places, UUIDs.

Promises: the type strictness of Qdrant: an integer is not a float, true is not 1, a time is a text of a known form.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

from generated.qdrant import json_with_int_pb2 as json_pb2

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARTH_RADIUS_METRES = 6371008.8

_TIME = re.compile(
    r"\s*(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})"
    r"(?:[Tt ](?P<hour>\d{1,2}):(?P<minute>\d{1,2})"
    r"(?::(?P<second>\d{1,2})(?:\.(?P<fraction>\d+))?(?P<zone> ?[Zz]| UTC| ?[+-]\d{2}(?::?\d{2})?)?)?)?",
    re.ASCII,
)


def number(value: json_pb2.Value) -> float | None:
    """An integer or float as a float; None for anything else, booleans and texts of digits included."""
    kind = value.WhichOneof("kind")
    if kind == "double_value":
        return value.double_value
    return float(value.integer_value) if kind == "integer_value" else None


def nanoseconds(text: str) -> int | None:
    """A time as nanoseconds since 1970; no zone means UTC; None when it has no form that Qdrant accepts."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    try:
        moment = datetime(
            int(match["year"]),
            int(match["month"]),
            int(match["day"]),
            int(match["hour"] or 0),
            int(match["minute"] or 0),
            min(int(match["second"] or 0), 59),
            tzinfo=UTC,
        )
    except ValueError:
        return None
    second = int(match["second"] or 0)
    if second > 60:
        return None
    whole = moment - _EPOCH - _offset((match["zone"] or "").strip())
    seconds = whole.days * 86400 + whole.seconds + (1 if second == 60 else 0)
    return seconds * 10**9 + int((match["fraction"] or "0")[:9].ljust(9, "0"))


def _offset(zone: str) -> timedelta:
    if not zone or zone[0] not in "+-":
        return timedelta()
    digits = zone[1:].replace(":", "").ljust(4, "0")
    shift = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return shift if zone[0] == "+" else -shift


def time_of(value: json_pb2.Value) -> int | None:
    """Nanoseconds of a value that is a text with a time in it."""
    return nanoseconds(value.string_value) if value.WhichOneof("kind") == "string_value" else None


def place(value: json_pb2.Value) -> tuple[float, float] | None:
    """(longitude, latitude) in degrees of an object with numbers `lon` and `lat`."""
    if value.WhichOneof("kind") != "struct_value":
        return None
    fields = value.struct_value.fields
    if "lon" not in fields or "lat" not in fields:
        return None
    lon, lat = number(fields["lon"]), number(fields["lat"])
    return (lon, lat) if lon is not None and lat is not None else None


def is_on_earth(lon: float, lat: float) -> bool:
    """Whether these are degrees of a place; a geo index holds no others."""
    return -180 <= lon <= 180 and -90 <= lat <= 90


def place_on_earth(value: json_pb2.Value) -> tuple[float, float] | None:
    """The place of a value if there is such a place."""
    found = place(value)
    return found if found is not None and is_on_earth(*found) else None


def metres_between(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Great-circle distance of two (lon, lat) by the haversine formula; NaN when one of them is infinite or NaN."""
    if not all(map(math.isfinite, (*first, *second))):
        return math.nan
    lon1, lat1, lon2, lat2 = map(math.radians, (*first, *second))
    half = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * _EARTH_RADIUS_METRES * math.asin(min(1.0, math.sqrt(half)))


Ring = list[tuple[float, float]]


def is_inside(point: tuple[float, float], exterior: Ring, interiors: list[Ring]) -> bool:
    """Strictly inside the exterior and strictly outside every interior ring; no edge counts as inside."""
    return _side(point, exterior) > 0 and all(_side(point, ring) < 0 for ring in interiors)


def _side(point: tuple[float, float], ring: Ring) -> int:
    """1 inside, 0 on the edge, -1 outside; even-odd rule over the closed ring."""
    x, y = point
    inside = False
    for (x1, y1), (x2, y2) in pairwise(ring):
        cross = (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)
        if cross == 0 and min(x1, x2) <= x <= max(x1, x2) and min(y1, y2) <= y <= max(y1, y2):
            return 0
        if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
            inside = not inside
    return 1 if inside else -1


def uuid_of(text: str) -> bytes | None:
    """The 16 bytes of a UUID in any spelling; None when it is none."""
    try:
        return UUID(text).bytes
    except ValueError:
        return None
