"""The real Qdrant engine of `qdrant-edge-py` as an oracle: a shard in a directory, asked in qdrant-client's models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client import models as m

_DISTANCES = {
    m.Distance.COSINE: edge.Distance.Cosine,
    m.Distance.DOT: edge.Distance.Dot,
    m.Distance.EUCLID: edge.Distance.Euclid,
    m.Distance.MANHATTAN: edge.Distance.Manhattan,
}
_SCHEMAS = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "integer": edge.PayloadSchemaType.Integer,
    "float": edge.PayloadSchemaType.Float,
    "geo": edge.PayloadSchemaType.Geo,
    "text": edge.PayloadSchemaType.Text,
    "bool": edge.PayloadSchemaType.Bool,
    "datetime": edge.PayloadSchemaType.Datetime,
    "uuid": edge.PayloadSchemaType.Uuid,
}


class Inexpressible(Exception):
    """The bindings cannot say this."""


class Edge:
    """One shard."""

    def __init__(
        self, directory: Path, vectors: dict[str, m.VectorParams], sparse: dict[str, m.SparseVectorParams] | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        dense = {
            name: edge.EdgeVectorParams(
                params.size,
                _DISTANCES[params.distance],
                multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
                if params.multivector_config
                else None,
            )
            for name, params in vectors.items()
        }
        made = {
            name: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if params.modifier else None)
            for name, params in (sparse or {}).items()
        }
        self.shard = edge.EdgeShard.create(str(directory), edge.EdgeConfig(vectors=dense, sparse_vectors=made))

    def upsert(self, points: list[m.PointStruct]) -> None:
        """Store points."""
        made = [edge.Point(point.id, vector_of(point.vector), point.payload or {}) for point in points]
        self.shard.update(edge.UpdateOperation.upsert_points(made))

    def delete(self, ids: list[Any]) -> None:
        """Delete points."""
        self.shard.update(edge.UpdateOperation.delete_points(ids))

    def index(self, field: str, schema: Any) -> None:
        """Create a payload index, by the name of its type or with parameters of qdrant_edge."""
        self.shard.update(edge.UpdateOperation.create_field_index(field, _SCHEMAS.get(schema, schema)))

    def matching(self, query: m.Filter) -> list[Any]:
        """Ids that pass a filter."""
        records, _ = self.shard.scroll(edge.ScrollRequest(limit=100_000, filter=filter_of(query)))
        return sorted((record.id for record in records), key=str)

    def close(self) -> None:
        """Release the shard."""
        self.shard.close()


def vector_of(vector: Any) -> Any:
    """A vector in the engine's own types."""
    if isinstance(vector, dict):
        return {name: vector_of(one) for name, one in vector.items()}
    if isinstance(vector, m.SparseVector):
        return edge.SparseVector(vector.indices, vector.values)
    return vector


def filter_of(query: m.Filter) -> Any:
    """A filter in the engine's own types."""

    def listed(conditions: Any) -> Any:
        # On the wire an empty list is no list.
        if not conditions:
            return None
        return [condition_of(one) for one in (conditions if isinstance(conditions, list) else [conditions])]

    least = query.min_should
    return edge.Filter(
        must=listed(query.must),
        should=listed(query.should),
        must_not=listed(query.must_not),
        min_should=edge.MinShould(listed(least.conditions), least.min_count) if least else None,
    )


def condition_of(condition: Any) -> Any:
    """A condition in the engine's own types."""
    match condition:
        case m.Filter():
            return filter_of(condition)
        case m.IsEmptyCondition():
            return edge.IsEmptyCondition(condition.is_empty.key)
        case m.IsNullCondition():
            return edge.IsNullCondition(condition.is_null.key)
        case m.HasIdCondition():
            return edge.HasIdCondition(set(condition.has_id))
        case m.HasVectorCondition():
            return edge.HasVectorCondition(condition.has_vector)
        case m.NestedCondition():
            return edge.NestedCondition(condition.nested.key, filter_of(condition.nested.filter))
        case m.FieldCondition():
            return _field(condition)
        case _:
            raise TypeError(condition)


def _geo(point: m.GeoPoint) -> Any:
    return edge.GeoPoint(point.lon, point.lat)


def _field(field: m.FieldCondition) -> Any:
    parts: dict[str, Any] = {}
    if field.match is not None:
        parts["match"] = _match(field.match)
    if isinstance(field.range, m.DatetimeRange):
        bounds = {name: getattr(field.range, name) for name in ("lt", "lte", "gt", "gte")}
        parts["range"] = edge.RangeDateTime(**{name: at.isoformat() for name, at in bounds.items() if at is not None})
    elif field.range is not None:
        parts["range"] = edge.RangeFloat(**field.range.model_dump(exclude_none=True))
    if field.values_count is not None:
        parts["values_count"] = edge.ValuesCount(**field.values_count.model_dump(exclude_none=True))
    if field.geo_radius is not None:
        parts["geo_radius"] = edge.GeoRadius(_geo(field.geo_radius.center), field.geo_radius.radius)
    if field.geo_bounding_box is not None:
        box = field.geo_bounding_box
        parts["geo_bounding_box"] = edge.GeoBoundingBox(_geo(box.top_left), _geo(box.bottom_right))
    if field.geo_polygon is not None:
        polygon = field.geo_polygon
        parts["geo_polygon"] = edge.GeoPolygon(
            [_geo(point) for point in polygon.exterior.points],
            [[_geo(point) for point in ring.points] for ring in polygon.interiors or []],
        )
    for name in ("is_empty", "is_null"):
        if getattr(field, name) is not None:
            parts[name] = getattr(field, name)
    return edge.FieldCondition(field.key, **parts)


def _match(match: Any) -> Any:
    match match:
        case m.MatchValue():
            if isinstance(match.value, bool):
                raise Inexpressible("qdrant_edge reads a bool as an integer")
            return edge.MatchValue(match.value)
        case m.MatchText():
            return edge.MatchText(match.text)
        case m.MatchTextAny():
            return edge.MatchTextAny(match.text_any)
        case m.MatchPhrase():
            return edge.MatchPhrase(match.phrase)
        case m.MatchPrefix():
            return edge.MatchPrefix(match.prefix)
        case m.MatchSubstring():
            return edge.MatchSubstring(match.substring)
        case m.MatchAny():
            return edge.MatchAny(match.any)
        case m.MatchExcept():
            return edge.MatchExcept(match.except_)
        case _:
            raise TypeError(match)
