"""Where local mode differs from a measured server (1.18.3), the server wins: the few rules that are replaced here.

Some rules depend on whether the field has a payload index; `use` says which fields of the collection at hand have one.
The engine is one thread, so a module variable is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from qdrant_client import models
from qdrant_client.local import distances, local_collection, payload_filters
from qdrant_client.local.payload_value_extractor import value_by_key

from generated.qdrant import collections_pb2

_check_condition = payload_filters.check_condition
_check_match = payload_filters.check_match
_check_values_count = payload_filters.check_values_count
_validate_dense_vector = local_collection.validate_dense_vector
_reciprocal_rank_fusion = local_collection.reciprocal_rank_fusion
_load_vectors = local_collection.LocalCollection.load_vectors
_cosine_similarity = distances.cosine_similarity
_indexes: Mapping[str, collections_pb2.PayloadSchemaInfo] = {}


def use(indexes: Mapping[str, collections_pb2.PayloadSchemaInfo]) -> None:
    """The payload indexes of the collection that the next call is about."""
    global _indexes  # noqa: PLW0603
    _indexes = indexes


def _has(field: str, kind: collections_pb2.PayloadSchemaType) -> bool:
    return field in _indexes and _indexes[field].data_type == kind


def is_null(payload: dict[str, Any], key: str) -> bool:
    """`is_null {key}`: the value itself is null; with an index a list with a null in it is null as well."""
    if key in _indexes:
        return payload_filters.check_is_null(payload, key)
    values = value_by_key(payload, key, flat=False)
    return values is not None and any(value is None for value in values)


def values_count(condition: models.ValuesCount, values: list[Any] | None) -> bool:
    """A missing key never matches; null counts 0, a list its length, anything else 1."""
    if values is None:
        return False
    return any(_within(condition, _count_of(value)) for value in values)


def _count_of(value: Any) -> int:
    if value is None:
        return 0
    return len(value) if isinstance(value, list) else 1


def _within(condition: models.ValuesCount, count: int) -> bool:
    return (
        (condition.lt is None or count < condition.lt)
        and (condition.lte is None or count <= condition.lte)
        and (condition.gt is None or count > condition.gt)
        and (condition.gte is None or count >= condition.gte)
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()


def _pieces(match: Any) -> list[str] | None:
    """Substrings of which one must be there; None for what is no text match."""
    match match:
        case models.MatchText():
            return [match.text]
        case models.MatchPhrase():
            return [match.phrase]
        case models.MatchTextAny():
            return match.text_any.split()
        case _:
            return None


def field_matches(condition: models.FieldCondition, payload: dict[str, Any]) -> bool:
    """Text without a text index is a case-sensitive substring; `except` with a keyword index sees strings only."""
    values = value_by_key(payload, condition.key) or []
    match = condition.match
    if not _has(condition.key, collections_pb2.Text):
        pieces = _pieces(match)
        if pieces is not None:
            return any(isinstance(value, str) and any(piece in value for piece in pieces) for value in values)
    if isinstance(match, models.MatchExcept):
        # An index of words has no answer about numbers, nor one of numbers about words.
        if _has(condition.key, collections_pb2.Keyword) and all(isinstance(one, str) for one in match.except_):
            values = [value for value in values if isinstance(value, str)]
        elif _has(condition.key, collections_pb2.Integer) and all(isinstance(one, int) for one in match.except_):
            values = [int(value) for value in values if _is_whole(value)]
    return any(_check_match(match, value) for value in values)


def check_condition(condition: Any, payload: dict[str, Any], point_id: Any, has_vector: dict[str, bool]) -> bool:
    """Local mode's evaluator with the rules above."""
    if isinstance(condition, models.IsNullCondition):
        return is_null(payload, condition.is_null.key)
    if isinstance(condition, models.FieldCondition) and condition.match is not None:
        return field_matches(condition, payload)
    return bool(_check_condition(condition, payload, point_id, has_vector))


def validate_dense_vector(vector: Any, vector_name: str) -> None:
    """A server stores NaN."""
    try:
        _validate_dense_vector(vector, vector_name)
    except ValueError as error:
        if "NaN" not in str(error):
            raise


def reciprocal_rank_fusion(*arguments: Any, **options: Any) -> list[models.ScoredPoint]:
    """A server adds up in float32: a score equal to a threshold from the wire passes it."""
    fused = _reciprocal_rank_fusion(*arguments, **options)
    for point in fused:
        point.score = float(np.float32(point.score))
    return fused


def load_vectors(self: local_collection.LocalCollection) -> None:
    """A server gives vectors of Cosine fields back normalised after a restart too; local mode's file has them raw."""
    _load_vectors(self)
    for name, rows in self.vectors.items():
        if len(rows) and self.get_vector_params(name).distance == models.Distance.COSINE:
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            self.vectors[name] = (rows / np.where(norms > local_collection.EPSILON, norms, 1)).astype(np.float32)
    for name, multis in self.multivectors.items():
        if self.get_vector_params(name).distance == models.Distance.COSINE:
            lengths = (np.linalg.norm(multi, axis=1, keepdims=True) for multi in multis)
            pairs = zip(multis, lengths, strict=True)
            self.multivectors[name] = [multi / np.where(norm != 0, norm, 1) for multi, norm in pairs]


def cosine_similarity(query: Any, vectors: Any) -> Any:
    """A server leaves what it stores alone; local mode divides it by its length again, which is 1 but for the last bit.

    So an example that is wanted and unwanted scored twice, before and after.
    """
    return _cosine_similarity(query, vectors.copy())


def uninstall() -> None:
    """Give local mode its own rules back, for tests that compare with it as it is."""
    payload_filters.check_values_count = _check_values_count
    payload_filters.check_condition = _check_condition
    local_collection.validate_dense_vector = _validate_dense_vector
    local_collection.reciprocal_rank_fusion = _reciprocal_rank_fusion
    local_collection.LocalCollection.load_vectors = _load_vectors
    distances.cosine_similarity = _cosine_similarity


def install() -> None:
    """Put the rules in place, in this process."""
    payload_filters.check_values_count = values_count
    payload_filters.check_condition = check_condition
    local_collection.validate_dense_vector = validate_dense_vector
    local_collection.reciprocal_rank_fusion = reciprocal_rank_fusion
    local_collection.LocalCollection.load_vectors = load_vectors
    distances.cosine_similarity = cosine_similarity
