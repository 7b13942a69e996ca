"""Random filters against the real engine of qdrant-edge-py, without indexes and with every kind of index.

Known difference, left out: a text that spells a UUID, matched on a field with a numeric index. The engine looks for the
UUID in the index or in the payload, depending on its plan.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as edge
from qdrant_client import models as m

from generated.qdrant import collections_pb2 as collections
from server.replica import paths, scalars
from server.replica.refusal import Refusal
from server.replica.tokens import tokenizer
from tests.replica import workload
from tests.replica.edge_engine import Edge, Inexpressible
from tests.replica.edge_engine import filter_of as engine_filter
from tests.replica.filtering import fields_of, numbered, passing

VECTORS = {"": m.VectorParams(size=1, distance=m.Distance.DOT)}
NUMERIC = ("integer", "float", "datetime")
INDEXES: list[dict[str, str]] = [
    {},
    {"a": "keyword", "b": "integer", "c": "float", "o.x": "keyword", "l[].x": "integer", "tags": "keyword"},
    {"a": "integer", "b": "bool", "c": "uuid", "o.x": "float", "tags": "text", "l[].x": "keyword"},
    {"a": "datetime", "b": "geo", "c": "integer", "l": "keyword", "tags": "uuid", "l[].x": "float", "o.x": "bool"},
]


def filled(directory: Path, points: list[m.PointStruct], indexes: dict[str, str]) -> Edge:
    """An engine with these points, and with payload indexes by field."""
    engine = Edge(directory / "edge", VECTORS)
    engine.upsert(points)
    for field, kind in indexes.items():
        engine.index(field, kind)
    return engine


def is_known_difference(query: m.Filter, indexes: dict[str, str]) -> bool:
    written = query.model_dump_json()
    return "6f9619ff" in written and any(kind in NUMERIC for kind in indexes.values())


@pytest.mark.parametrize(("seed", "indexes"), list(product(range(2), INDEXES)))
def test_agrees_with_the_engine(seed: int, indexes: dict[str, str], tmp_path: Path) -> None:
    chance = random.Random(seed)
    points = numbered({number: workload.payload(chance) for number in range(60)})
    engine = filled(tmp_path, points, indexes)
    fields = fields_of("1.20.0", **indexes)
    compared = 0
    for _ in range(150):
        single = m.Filter(must=[workload.condition(chance)])
        query = workload.filter_(chance) if chance.random() < 0.4 else single
        if is_known_difference(query, indexes):
            continue
        try:
            expected = engine.matching(query)
        except Inexpressible:
            continue
        compared += 1
        assert sorted(passing(query, points, fields), key=str) == expected, query.model_dump_json(exclude_none=True)
    engine.close()
    assert compared > 60


FAR = ((0, 0), (180, 0), (-180, 0), (200, 0), (0, 91), (-190, 5), (0, -90.5), (10, 10), (45, 89))
PLACES = numbered(
    {
        **{number: {"a": {"lon": lon, "lat": lat}} for number, (lon, lat) in enumerate(FAR)},
        20: {"a": [{"lon": 200, "lat": 0}, {"lon": 1, "lat": 1}]},
        21: {"a": [{"lon": 200, "lat": 0}, {"lon": 10, "lat": 91}]},
    }
)


def box(left: float, top: float, right: float, bottom: float) -> m.GeoBoundingBox:
    return m.GeoBoundingBox(top_left=m.GeoPoint(lon=left, lat=top), bottom_right=m.GeoPoint(lon=right, lat=bottom))


@pytest.mark.parametrize("index", [None, "geo", "keyword"])
def test_places_off_the_earth_agree_with_the_engine(index: str | None, tmp_path: Path) -> None:
    """A geo index does not hold them."""
    indexes = {"a": index} if index else {}
    engine = filled(tmp_path, PLACES, indexes)
    corners = ((-179, -89), (179, -89), (179, 89), (-179, 89), (-179, -89))
    ring = m.GeoLineString(points=[m.GeoPoint(lon=lon, lat=lat) for lon, lat in corners])
    for shape in (
        {"geo_radius": m.GeoRadius(center=m.GeoPoint(lon=0, lat=0), radius=3e7)},
        {"geo_bounding_box": box(-179.9, 89.9, 179.9, -89.9)},
        {"geo_bounding_box": box(170, 20, -170, -20)},
        {"geo_polygon": m.GeoPolygon(exterior=ring)},
    ):
        conditions: list[Any] = [m.FieldCondition(key="a", **shape)]
        for query in (m.Filter(must=conditions), m.Filter(must_not=conditions)):
            found = sorted(passing(query, PLACES, fields_of("1.20.0", **indexes)), key=str)
            assert found == engine.matching(query), query.model_dump_json(exclude_none=True)
    engine.close()


RING = ((0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 0.0))


@pytest.mark.parametrize(
    ("center", "exterior", "interior"),
    [
        ((0, 0), RING, RING),
        ((0, 0), RING[:3], RING),
        ((0, 0), (*RING[:3], (0, 1)), RING),
        ((0, 0), (), RING),
        ((0, 0), RING, RING[:3]),
        ((0, 0), RING, (*RING[:3], (0, 1))),
        ((181, 0), RING, RING),
        ((0, -90.5), RING, RING),
        ((float("inf"), 0), RING, RING),
        ((0, 0), (RING[0], (181, 0), *RING[2:]), RING),
    ],
)
def test_the_engine_refuses_the_same_shapes(
    center: tuple[float, float], exterior: tuple[tuple[float, float], ...], interior: tuple[tuple[float, float], ...]
) -> None:
    def line(ring: tuple[tuple[float, float], ...]) -> m.GeoLineString:
        return m.GeoLineString(points=[m.GeoPoint(lon=lon, lat=lat) for lon, lat in ring])

    polygon = m.GeoPolygon(exterior=line(exterior), interiors=[line(interior)])
    circle = m.GeoRadius(center=m.GeoPoint(lon=center[0], lat=center[1]), radius=5)
    query = m.Filter(
        must=[m.FieldCondition(key="a", geo_polygon=polygon), m.FieldCondition(key="a", geo_radius=circle)]
    )

    def is_refused(ask: Callable[[], object], refusal: type[Exception]) -> bool:
        try:
            ask()
        except refusal:
            return True
        return False

    assert is_refused(lambda: passing(query, [], fields_of("1.20.0")), Refusal) == is_refused(
        lambda: engine_filter(query), ValueError
    )


NUMBERS = (0, 1, 2, 3, -5, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2.5, 1.0, 9.3e18, -9.3e18, 1e300, -1e300)
BOUNDS = (float("nan"), float("inf"), float("-inf"), 1e19, -1e19, 2.0**63, -(2.0**63), 2.5, -2.5, 2.0**53)


@pytest.mark.parametrize("index", [None, "keyword", "integer", "float", "datetime"])
def test_bounds_beyond_numbers_agree_with_the_engine(index: str | None, tmp_path: Path) -> None:
    points = numbered({number: {"a": value} for number, value in enumerate(NUMBERS)})
    indexes = {"a": index} if index else {}
    engine = filled(tmp_path, points, indexes)
    for name, bound in product(("lt", "lte", "gt", "gte"), BOUNDS):
        if index == "float" and math.isnan(bound):
            continue  # The engine falls over it.
        query = m.Filter(must=[m.FieldCondition(key="a", range=m.Range(**{name: bound}))])
        found = sorted(passing(query, points, fields_of("1.20.0", **indexes)), key=str)
        assert found == engine.matching(query), (name, bound)
    engine.close()


# Letters of other scripts with the signs that they are written with, signs that are no letters, and punctuation.
LETTERS = "aйβ한日ｶÀªⅧ²٣Ⓐिंीी्ทีָّ่\u0301\u200d\u200c-_ /$:'`\\#\u00a0\n😀"
PATHS = ('""', '"a b"', '"a\\b"', '"\\"', 'a."b"', '"a"b', 'a""', '"a', "a.", ".a", "", "a[]", "a[0]", "a[-1]", "a[]b")
PATHS = (*PATHS, "हिंदी", "ที่", "a[].हिंदी[0]", '"a"."b"', '"[]"', "a[18446744073709551615]", "a[18446744073709551616]")


def test_what_is_a_path_agrees_with_the_engine() -> None:
    def is_path(text: str, read: Callable[[str], object], refusal: type[Exception]) -> bool:
        try:
            read(text)
        except refusal:
            return False
        return True

    def theirs(text: str) -> object:
        return engine_filter(m.Filter(must=[m.IsEmptyCondition(is_empty=m.PayloadField(key=text))]))

    texts = [*PATHS, *LETTERS, *(f"k{letter}k" for letter in LETTERS), *(f'"k{letter}k"' for letter in LETTERS)]
    for text in texts:
        assert is_path(text, paths.parse, paths.BadPath) == is_path(text, theirs, ValueError), text
        if is_path(text, paths.parse, paths.BadPath):
            path = paths.parse(text)
            assert paths.parse(paths.text_of(path)) == path
    assert paths.text_of(paths.parse("a[].हिंदी")) == "a[].हिंदी"


UUID = "550e8400-e29b-41d4-a716-446655440000"
UUIDS = (UUID, UUID.upper(), UUID.replace("-", ""), f"{{{UUID}}}", f"urn:uuid:{UUID}", f"URN:UUID:{UUID}")
NO_UUIDS = (f"{{{UUID.replace('-', '')}}}", f"urn:uuid:{UUID.replace('-', '')}", f"{{urn:uuid:{UUID}}}", f" {UUID}")
NO_UUIDS = (*NO_UUIDS, UUID.replace("-", "", 1), f"urn:{UUID}", f"{{{UUID}", "5-50e8400e29b41d4a716446655440000")


def test_spellings_of_a_uuid_agree_with_the_engine(tmp_path: Path) -> None:
    points = numbered({number: {"a": text} for number, text in enumerate((*UUIDS, *NO_UUIDS))})
    engine = filled(tmp_path, points, {"a": "uuid"})
    query = m.Filter(must=[m.FieldCondition(key="a", match=m.MatchValue(value=UUID))])
    assert passing(query, points, fields_of("1.20.0", a="uuid")) == list(range(len(UUIDS)))
    assert engine.matching(query) == list(range(len(UUIDS)))
    engine.close()


@pytest.mark.parametrize("index", [None, "uuid", "keyword"])
def test_all_but_nothing_agrees_with_the_engine(index: str | None, tmp_path: Path) -> None:
    values = (UUID, UUID.upper(), "no UUID", 1, None, [UUID, "x"], ["x"], [], {"a": UUID}, True)
    points = numbered({number: {"a": value} for number, value in enumerate(values)})
    indexes = {"a": index} if index else {}
    engine = filled(tmp_path, points, indexes)
    but = m.FieldCondition(key="a", match=m.MatchExcept(**{"except": []}))
    for query in (
        m.Filter(must=[but]),
        m.Filter(must_not=[but]),
        m.Filter(must=[but, m.HasIdCondition(has_id=[0, 2])]),
    ):
        assert passing(query, points, fields_of("1.20.0", **indexes)) == engine.matching(query), query
    engine.close()


SECOND = "2024-01-02T03:04:05"
FINE = ("", ".123456", ".1234567", ".123456789", ".123457", ".1234569999", ".999999999")


@pytest.mark.parametrize("index", [None, "keyword", "datetime"])
def test_times_finer_than_a_microsecond_agree_with_the_engine(index: str | None, tmp_path: Path) -> None:
    texts = [f"{second}{fine}Z" for second in (SECOND, "1969-12-31T23:59:59") for fine in FINE]
    points = numbered({number: {"a": text} for number, text in enumerate(texts)})
    indexes = {"a": index} if index else {}
    engine = filled(tmp_path, points, indexes)
    for name, text in product(("lt", "lte", "gt", "gte"), texts):
        query = m.Filter(must=[m.FieldCondition(key="a", range=m.DatetimeRange(**{name: text}))])
        assert sorted(passing(query, points, fields_of("1.20.0", **indexes))) == sorted(engine.matching(query)), query
    engine.close()


# A time as parts, to be put together wrongly.
TIMES = (
    ("2024", "-", "01", "-", "02", "T", "03", ":", "04", ":", "05", "Z"),
    ("2024", "-", "01", "-", "02", " ", "03", ":", "04", ":", "05", ".25", "+", "05", ":", "30"),
    ("-", "24", "-", "1", "-", "2", "t", "3", ":", "4", ":", "5", " utc"),
    ("+", "12024", "-", "02", "-", "29", "T", "23", ":", "59", ":", "60", "\u2212", "05"),
    ("2024", "-", "1", "-", "2", " ", "3", ":", "4"),
)
PARTS = (
    *TIMES[0],
    *TIMES[1],
    *TIMES[2],
    *TIMES[3],
    "  ",
    "\t",
    "\u3000",
    "\x1c",
    "60",
    "7",
    "",
    "UTC",
    "0",
    "23",
    "24",
)
SPELT = ("0000-01-01", "0000-02-29", "-0004-02-29", "1900-02-29", "1-1-1", "202-01-02", "10000-01-01", "+2024-01-02")
SPELT = (*SPELT, "-262143-01-01", "-262144-12-31", "+262142-12-31", "+262143-01-01", "-262143-01-01T00:00:00+05:00")
SPELT = (*SPELT, "2024-01-02T03:04:05+23:59", "2024-01-02T03:04:05+24:00", "2024-01-02T03:04:05+05:60", "2024-01-02 ")


def test_spellings_of_a_time_agree_with_the_engine(tmp_path: Path) -> None:
    chance = random.Random(4)
    texts = [*SPELT, *map("".join, TIMES)]
    for _ in range(1_500):
        parts = list(chance.choice(TIMES))
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(parts))
            parts[at : at + chance.randint(0, 1)] = [chance.choice(PARTS)]
        texts.append("".join(parts))
    engine = Edge(tmp_path / "edge", VECTORS)
    engine.upsert(numbered({number: {"a": text} for number, text in enumerate(texts)}))
    engine.index("a", "datetime")
    found, _ = engine.shard.scroll(edge.ScrollRequest(limit=10_000, order_by=edge.OrderBy("a")))
    engine.close()
    theirs = {record.id: record.order_value for record in found}
    read = {number: scalars.nanoseconds(text) for number, text in enumerate(texts)}
    ours = {number: moment // 1000 for number, moment in read.items() if moment is not None}
    assert {texts[number] for number, _ in ours.items() ^ theirs.items()} == set()
    assert 100 < len(theirs) < 1_000


TEXTS = numbered(
    {
        1: {"t": "The Night sky, over the sea"},
        2: {"t": "night-sky night"},
        3: {"t": ["sky night", "sea"]},
        4: {"t": "Ночь и море 42"},
        5: {"t": "über Straße a_b"},
        6: {"t": ""},
        7: {"t": 42},
        8: {"o": "none"},
        9: {"t": "skyline seafood"},
        10: {"t": "Nights of Running skies"},
        # Vowel signs are marks, a virama and a zero-width joiner are none of a word; \x1c is no white space.
        11: {"t": "வீட்டில் हिन्दी में ไทย\u200dภาษา x\x1cy\u00a0z कि"},
        12: {"t": ["night", "sky"]},
        13: {"t": ["the sea", "of night sky over", "night"]},
        14: {"t": "Kadıköy Bakı şəhəri ŋorn Ⅷ ﬅ"},  # noqa: RUF001
        15: {"t": "مُحَمَّد עִבְרִית"},
    }
)
SNOWBALL = collections.StemmingAlgorithm(snowball=collections.SnowballParams(language="english"))
QUERIES = (
    "night",
    "sky night",
    "night sky",
    "Sea",
    "se",
    "42",
    "море",
    "uber",
    "STRASSE",
    "a_b",
    "",
    "the",
    ", ",
    "sk",
    "sea x",
    "skies",
    "running nights",
    "RUNS",
    "हिन्दी",
    "हिन",
    "கி வீட",
    "ไทย",
    "x\x1cy",
    "y",
    "कि",
    "क",
    "kadikoy baki",
    "sahari norn",
    "viii",
    "st",
    "محمد",
    "עברית",
    "מֻחמד",
)
TOKENIZERS = (
    ({}, {}),
    ({"lowercase": False}, {"lowercase": False}),
    ({"tokenizer": collections.Whitespace}, {"tokenizer": edge.TokenizerType.Whitespace}),
    ({"tokenizer": collections.Word, "min_token_len": 3, "max_token_len": 5}, {"min_token_len": 3, "max_token_len": 5}),
    (
        {"tokenizer": collections.Prefix, "min_token_len": 2, "max_token_len": 4},
        {"tokenizer": edge.TokenizerType.Prefix, "min_token_len": 2, "max_token_len": 4},
    ),
    ({"phrase_matching": True}, {"phrase_matching": True}),
    ({"ascii_folding": True}, {"ascii_folding": True}),
    ({"stemmer": SNOWBALL}, {"stemmer": edge.SnowballParams(edge.SnowballLanguage.English)}),
    (
        {"stemmer": SNOWBALL, "max_token_len": 4, "stopwords": collections.StopwordsSet(custom=["sea", "skies"])},
        {
            "stemmer": edge.SnowballParams(edge.SnowballLanguage.English),
            "max_token_len": 4,
            "stopwords": edge.StopwordsSet(custom={"sea", "skies"}),
        },
    ),
    (
        {"stemmer": SNOWBALL, "tokenizer": collections.Prefix, "lowercase": False},
        {
            "stemmer": edge.SnowballParams(edge.SnowballLanguage.English),
            "tokenizer": edge.TokenizerType.Prefix,
            "lowercase": False,
        },
    ),
    (
        {"stemmer": SNOWBALL, "phrase_matching": True, "ascii_folding": True},
        {
            "stemmer": edge.SnowballParams(edge.SnowballLanguage.English),
            "phrase_matching": True,
            "ascii_folding": True,
        },
    ),
    (
        {"stopwords": collections.StopwordsSet(custom=["the", "sk"]), "tokenizer": collections.Prefix},
        {"stopwords": edge.StopwordsSet(custom={"the", "sk"}), "tokenizer": edge.TokenizerType.Prefix},
    ),
    (
        {"phrase_matching": True, "tokenizer": collections.Prefix},
        {"phrase_matching": True, "tokenizer": edge.TokenizerType.Prefix},
    ),
    (
        {"stopwords": collections.StopwordsSet(custom=["the", "Sky"])},
        {"stopwords": edge.StopwordsSet(custom={"the", "Sky"})},
    ),
)


PHRASED = (
    "night sky",
    "night the sky",
    "night a sky",
    "night sk",
    "nightly sky",
    "sky night",
    "ni sky over",
    "n ni nig",
)
PHRASED = (*PHRASED, "n ni nig nigh night s sk sky", "nights sky", "night", "a", "the night", "nigh", "ni sk", "nig sk")


@pytest.mark.parametrize("lengths", [{}, {"min_token_len": 2, "max_token_len": 4}, {"min_token_len": 3}], ids=str)
@pytest.mark.parametrize("stopwords", [(), ("the", "ni")])
@pytest.mark.parametrize("kind", ["Prefix", "Word"])
def test_phrases_agree_with_the_engine(
    kind: str, stopwords: tuple[str, ...], lengths: dict[str, int], tmp_path: Path
) -> None:
    engine = Edge(tmp_path / "edge", VECTORS)
    points = numbered({number: {"t": text} for number, text in enumerate(PHRASED)})
    engine.upsert(points)
    theirs = edge.TextIndexParams(
        tokenizer=getattr(edge.TokenizerType, kind),
        phrase_matching=True,
        stopwords=edge.StopwordsSet(custom=set(stopwords)),
        **lengths,
    )
    engine.index("t", theirs)
    params = collections.TextIndexParams(
        tokenizer=collections.TokenizerType.Value(kind),  # type: ignore[arg-type]
        phrase_matching=True,
        stopwords=collections.StopwordsSet(custom=stopwords),
        **lengths,
    )
    fields = fields_of("1.20.0", t=params)
    for text in PHRASED:
        query = m.Filter(must=[m.FieldCondition(key="t", match=m.MatchPhrase(phrase=text))])
        assert set(passing(query, points, fields)) == set(engine.matching(query)), text
    engine.close()


@pytest.mark.parametrize("index", [None, *TOKENIZERS], ids=lambda one: "plain" if one is None else str(one[0]))
def test_text_agrees_with_the_engine(index: tuple[dict[str, Any], dict[str, Any]] | None, tmp_path: Path) -> None:
    engine = Edge(tmp_path / "edge", VECTORS)
    engine.upsert(TEXTS)
    fields = fields_of("1.20.0")
    if index is not None:
        ours, theirs = index
        engine.index("t", edge.TextIndexParams(**theirs))
        fields = fields_of("1.20.0", t=collections.TextIndexParams(**ours))
    for query, form in product(QUERIES, ("text", "text_any", "phrase", "prefix", "substring")):
        kind = {
            "text": m.MatchText,
            "text_any": m.MatchTextAny,
            "phrase": m.MatchPhrase,
            "prefix": m.MatchPrefix,
            "substring": m.MatchSubstring,
        }[form]
        condition = m.Filter(must=[m.FieldCondition(key="t", match=kind(**{form: query}))])
        assert sorted(passing(condition, TEXTS, fields), key=str) == engine.matching(condition), (form, query)
    engine.close()


# Where Unicode has letters and signs that look like ASCII with something to it.
FOLDABLE = (*range(0x80, 0x3300), *range(0xA640, 0xA800), *range(0xAB30, 0xAB70), *range(0xFB00, 0x10000))


def test_folded_letters_agree_with_the_engine(tmp_path: Path) -> None:
    letters = {code: chr(code) for code in FOLDABLE if not chr(code).isspace()}
    engine = Edge(tmp_path / "edge", VECTORS)
    points = numbered({code: {"t": letter} for code, letter in letters.items()})
    for start in range(0, len(points), 2_000):
        engine.upsert(points[start : start + 2_000])
    options = {"ascii_folding": True, "lowercase": False}
    engine.index("t", edge.TextIndexParams(tokenizer=edge.TokenizerType.Whitespace, **options))
    params = collections.TextIndexParams(tokenizer=collections.Whitespace, **options)
    cut = tokenizer(params, of_query=False)
    held: dict[str, list[int]] = {}
    for code, letter in letters.items():
        for token in cut(letter):
            held.setdefault(token, []).append(code)
    written = [token for token in held if token.isascii()]
    assert len(written) > 200
    others = random.Random(9).sample([token for token in held if not token.isascii()], 400)
    for token in (*written, *others):
        match = m.MatchText(text=token)
        assert set(engine.matching(m.Filter(must=[m.FieldCondition(key="t", match=match)]))) == set(held[token]), token
    engine.close()
