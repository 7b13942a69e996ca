"""PURE. Reading scalars out of payload values as Qdrant reads them: numbers, times, places, UUIDs.

Promises: the type strictness of Qdrant: an integer is not a float, true is not 1, a time is a text of a known form.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from itertools import pairwise

from generated.qdrant import json_with_int_pb2 as json_pb2
from server.replica.points import BadPointId, uuid_bytes

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARTH_RADIUS_METRES = 6371008.8

# As Rust's chrono reads: white space is anything that Unicode calls so, it may stand before each number, and a number
# takes all the digits that it can.
_SPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_W = f"{_SPACE}*+"
_YEAR, _MONTH, _DAY = rf"{_W}(?P<year>[+-]\d++|\d{{1,4}}+)", rf"{_W}(?P<month>\d{{1,2}}+)", rf"{_W}(?P<day>\d{{1,2}}+)"
_HOUR, _MINUTE = rf"{_W}(?P<hour>\d{{1,2}}+)", rf"{_W}(?P<minute>\d{{1,2}}+)"
_SECOND = rf"{_W}(?P<second>\d{{1,2}}+)(?:\.(?P<fraction>\d++))?+"
_SHIFT = rf"(?P<sign>[+\u2212-])(?P<hours>\d\d)(?::|{_SPACE})*+"
_DATE = f"{_YEAR}-{_MONTH}-{_DAY}"
_BETWEEN = f"(?:T|{_W})"
_ZONED, _WITHOUT_ZONE, _LOOSE = (
    re.compile(text, re.ASCII)
    for text in (
        # With a zone, of hours only or with minutes.
        f"{_DATE}{_BETWEEN}{_HOUR}:{_MINUTE}:{_SECOND}{_W}(?:[Zz]|{_SHIFT}(?P<minutes>[0-5]\\d)?)",
        # Without a zone.
        f"{_DATE}(?:{_BETWEEN}{_HOUR}:{_MINUTE}(?::{_SECOND})?)?",
        # More white space.
        f"{_YEAR}{_W}-{_MONTH}{_W}-{_DAY}[Tt ]{_HOUR}{_W}:{_MINUTE}{_W}:{_SECOND}{_W}"
        f"(?:[Zz]|[Uu][Tt][Cc]|{_SHIFT}(?P<minutes>[0-5]\\d)){_W}",
    )
)
# So many days have 400 years, after which the calendar is the same again.
_YEARS, _DAYS = 400, 146_097
# From the year -262143 to 262142.
_SECONDS_LEAST, _SECONDS_MOST = -8_334_601_228_800, 8_210_266_876_799


def number(value: json_pb2.Value) -> float | None:
    """An integer or float as a float; None for anything else, booleans and texts of digits included."""
    kind = value.WhichOneof("kind")
    if kind == "double_value":
        return value.double_value
    return float(value.integer_value) if kind == "integer_value" else None


def nanoseconds(text: str) -> int | None:
    """A time as nanoseconds since 1970; no zone means UTC; None when it has no form that Qdrant accepts."""
    match = _ZONED.fullmatch(text) or _WITHOUT_ZONE.fullmatch(text) or _LOOSE.fullmatch(text)
    if match is None:
        return None
    try:
        rounds, year = divmod(int(match["year"]), _YEARS)
        moment = datetime(
            year + _YEARS,
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
    shift = _shift_seconds(match)
    if second > 60 or shift is None:
        return None
    whole = moment - _EPOCH
    seconds = (whole.days + (rounds - 1) * _DAYS) * 86400 + whole.seconds - shift + (1 if second == 60 else 0)
    if not _SECONDS_LEAST <= seconds <= _SECONDS_MOST:
        return None
    return seconds * 10**9 + int((match["fraction"] or "0")[:9].ljust(9, "0"))


def _shift_seconds(found: re.Match[str]) -> int | None:
    """What a zone is ahead of UTC; None for a day or more."""
    if found.re is _WITHOUT_ZONE or not found["sign"]:
        return 0
    shift = int(found["hours"]) * 3600 + int(found["minutes"] or 0) * 60
    if shift >= 86400:
        return None
    return shift if found["sign"] == "+" else -shift


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
    """The 16 bytes of a UUID in any spelling that Qdrant reads; None when it is none."""
    try:
        return uuid_bytes(text)
    except BadPointId:
        return None
