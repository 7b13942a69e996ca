"""Filters on payloads without a store: qdrant-client's models in, ids out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qdrant_client import models as m
from qdrant_client.conversions.conversion import RestToGrpc

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from server.replica.fields import Fields
from server.replica.filters import compile_filter
from server.replica.points import id_of, key_of
from server.replica.records import Record

KINDS = {
    "keyword": collections.Keyword,
    "integer": collections.Integer,
    "float": collections.Float,
    "geo": collections.Geo,
    "text": collections.Text,
    "bool": collections.Bool,
    "datetime": collections.Datetime,
    "uuid": collections.Uuid,
}


_MADE: dict[int, tuple[m.PointStruct, Record]] = {}


def record_of(point: m.PointStruct) -> Record:
    """A stored point; its vectors are kept only by name."""
    if id(point) not in _MADE:
        _MADE[id(point)] = (point, _record_of(point))
    return _MADE[id(point)][1]


def _record_of(point: m.PointStruct) -> Record:
    made = pb.PointStruct.FromString(RestToGrpc.convert_point_struct(point).SerializeToString())
    names = point.vector if isinstance(point.vector, dict) else {"": point.vector}
    vectors = pb.NamedVectors(vectors={name: pb.Vector(dense=pb.DenseVector(data=[1.0])) for name in names})
    payload = pb.PointStruct(payload=made.payload)
    return Record(key_of(made.id), payload.SerializeToString(), vectors.SerializeToString())


def filter_of(query: m.Filter) -> common.Filter:
    """A filter as the wire carries it."""
    return common.Filter.FromString(RestToGrpc.convert_filter(query).SerializeToString())


def fields_of(version: str = "1.18.3", **kinds: str | collections.TextIndexParams) -> Fields:
    """Indexes by field: the name of a kind, or parameters of a text index."""
    schema = {}
    for field, kind in kinds.items():
        info = collections.PayloadSchemaInfo(data_type=collections.Text if not isinstance(kind, str) else KINDS[kind])
        if not isinstance(kind, str):
            info.params.text_index_params.CopyFrom(kind)
        schema[field] = info.SerializeToString()
    return Fields.of(schema, version)


def passing(query: m.Filter, points: Sequence[m.PointStruct], fields: Fields) -> list[Any]:
    """Ids of the points that pass."""
    matcher = compile_filter(filter_of(query), fields)
    found = [id_of(record.key) for record in matcher.select(record_of(point) for point in points)]
    return [one.uuid or one.num for one in found]


def numbered(payloads: Mapping[int, Any]) -> list[m.PointStruct]:
    """Points with these payloads."""
    return [m.PointStruct(id=number, vector=[1.0], payload=payload) for number, payload in payloads.items()]
