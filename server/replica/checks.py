"""PURE. What Qdrant checks in requests about collections, aliases and field indexes.

Promises: the status and text of Qdrant 1.18 for what it refuses. Does not promise every check of every version: what
passes here and not there is refused at replay and quarantined.
"""

from __future__ import annotations

from generated.qdrant import collections_pb2 as pb
from generated.qdrant import points_pb2 as points
from server.replica import number_ranges, stems
from server.replica.paths import parse_or_refuse
from server.replica.refusal import bad_body, invalid, no_vector_name, wrong_input
from server.replica.vector_forms import fields_of

_MOST_NAME_BYTES = 255
_FORBIDDEN_IN_NAMES = '<>:"/\\|?*\0\x1f'
_FORBIDDEN_IN_READS = "/\0"
_MOST_DIMENSIONS = 65536

# FieldType of a request → the params that may come with it.
_PARAMS_OF: dict[int, str] = {
    points.FieldType.FieldTypeKeyword: "keyword_index_params",
    points.FieldType.FieldTypeInteger: "integer_index_params",
    points.FieldType.FieldTypeFloat: "float_index_params",
    points.FieldType.FieldTypeGeo: "geo_index_params",
    points.FieldType.FieldTypeText: "text_index_params",
    points.FieldType.FieldTypeBool: "bool_index_params",
    points.FieldType.FieldTypeDatetime: "datetime_index_params",
    points.FieldType.FieldTypeUuid: "uuid_index_params",
}

# Languages whose stopwords Qdrant has, by name and by code.
_STOPWORD_LANGUAGES = frozenset(
    (
        *("arabic", "azerbaijani", "basque", "bengali", "catalan", "chinese", "danish", "dutch", "english", "finnish"),
        *("french", "german", "greek", "hebrew", "hinglish", "hungarian", "indonesian", "italian", "japanese"),
        *("kazakh", "nepali", "norwegian", "portuguese", "romanian", "russian", "slovene", "spanish", "swedish"),
        *("tajik", "turkish", "ar", "az", "eu", "bn", "ca", "zh", "da", "nl", "en", "fi", "fr", "de", "el", "he"),
        *("hi-en", "hu", "id", "it", "jp", "kk", "ne", "no", "pt", "ro", "ru", "sl", "es", "sv", "tg", "tr"),
    )
)


def check_name(name: str) -> None:
    """Raises Refusal for a name that no collection and no alias can have."""
    if not 1 <= len(name.encode()) <= _MOST_NAME_BYTES:
        raise bad_body("collection_name", f'value "{name}" invalid, must be from 1 to 255 characters')


def check_read_name(name: str) -> None:
    """Raises Refusal for a name that nothing can be read by: an alias may have it all the same."""
    check_name(name)
    _check_characters(name, _FORBIDDEN_IN_READS)


def _check_characters(name: str, forbidden: str) -> None:
    for character in forbidden:
        if character in name:
            raise bad_body("collection_name", f'collection name cannot contain "{character}" char')


def check_new_collection(request: pb.CreateCollection) -> None:
    """Raises Refusal for a collection that Qdrant would not make, existing names apart."""
    name = request.collection_name
    check_name(name)
    _check_characters(name, _FORBIDDEN_IN_NAMES)
    number_ranges.check(request)
    form = request.vectors_config.WhichOneof("config")
    if form == "params":
        check_vector_params(request.vectors_config.params, "vectors_config.config.params")
    for vector_name, params in request.vectors_config.params_map.map.items():
        check_vector_params(params, "vectors_config.config.params_map.map")
        if vector_name in request.sparse_vectors_config.map:
            raise wrong_input(f"Dense and sparse vector names must be unique - duplicate found with '{vector_name}'")


def check_vector_params(params: pb.VectorParams, place: str) -> None:
    """Raises Refusal for a dense vector that Qdrant would not make."""
    if not 1 <= params.size <= _MOST_DIMENSIONS:
        raise bad_body(f"{place}.size", f"value {params.size} invalid, must be from 1 to 65536")
    if params.distance == pb.Distance.UnknownDistance:
        raise invalid("UnknownDistance is not allowed")
    if params.distance not in pb.Distance.values():
        raise invalid(f"Malformed distance parameter, unexpected value: {params.distance}")


def check_collection_update(request: pb.UpdateCollection, config: pb.CollectionConfig) -> None:
    """Raises Refusal for an update that names vectors that the collection lacks."""
    fields = fields_of(config.params)
    dense = request.vectors_config.params_map.map
    names = [""] if request.vectors_config.WhichOneof("config") == "params" else list(dense)
    for name in names:
        if name not in fields or fields[name].is_sparse:
            raise no_vector_name(name)
    for name in request.sparse_vectors_config.map:
        if name not in fields or not fields[name].is_sparse:
            raise no_vector_name(name)


def schema_type(request: points.CreateFieldIndexCollection) -> int:
    """The PayloadSchemaType of a new field index. Raises Refusal."""
    if not request.HasField("field_type"):
        raise invalid("cannot convert field_type")
    if request.field_type not in points.FieldType.values():
        raise invalid("field type is missing")
    # The two enums list the same types, one begins with "unknown".
    return int(request.field_type) + 1


def check_field_index(request: points.CreateFieldIndexCollection) -> None:
    """Raises Refusal for a field index that Qdrant would not make."""
    if not request.field_name:
        raise bad_body("field_name", 'value "" invalid, must be at least 1 characters')
    _check_integer_index(request.field_index_params.integer_index_params)
    parse_or_refuse(request.field_name)
    schema_type(request)
    given = request.field_index_params.WhichOneof("index_params")
    if given is not None and given != _PARAMS_OF[request.field_type]:
        kind = points.FieldType.Name(request.field_type).removeprefix("FieldType")
        raise invalid(f"field_type ({kind}) and field_index_params do not match")
    if given == "text_index_params":
        _check_text_index(request.field_index_params.text_index_params)


def _check_integer_index(params: pb.IntegerIndexParams) -> None:
    has_neither = not (params.lookup or params.range)
    if has_neither and params.HasField("lookup") and params.HasField("range"):
        why = "Validation error: the 'lookup' and 'range' capabilities can't be both disabled [{}]"
        raise bad_body("field_index_params.index_params.lookup", why)


def _check_text_index(params: pb.TextIndexParams) -> None:
    for language in params.stopwords.languages:
        if language not in _STOPWORD_LANGUAGES:
            raise invalid(f"unknown language: {language}")
    if params.stemmer.WhichOneof("stemming_params") == "snowball":
        language = params.stemmer.snowball.language
        if stems.stemmer(language) is None:
            raise invalid(f'Language "{language}" not found.')
    if params.tokenizer == pb.TokenizerType.Unknown or params.tokenizer not in pb.TokenizerType.values():
        raise invalid("unknown tokenizer type")


def check_vector_name(request: points.CreateVectorNameRequest, config: pb.CollectionConfig) -> None:
    """Raises Refusal for a vector that Qdrant would not add; one that is there already is no error."""
    name = request.vector_name
    existing = fields_of(config.params).get(name)
    if request.WhichOneof("vector_config") == "dense_config":
        dense = request.dense_config
        check_vector_params(pb.VectorParams(size=dense.size, distance=dense.distance), "dense_config")
        if existing is not None and existing.is_sparse:
            raise wrong_input(f"Vector `{name}` already exists as a sparse vector")
        if existing is not None and not _is_same_dense(config.params.vectors_config, request):
            raise wrong_input(f"Vector `{name}` already exists with a different configuration")
    elif existing is not None and not existing.is_sparse:
        raise wrong_input(f"Vector `{name}` already exists as a dense vector")
    elif existing is not None and not _is_same_sparse(config.params.sparse_vectors_config.map[name], request):
        raise wrong_input(f"Sparse vector `{name}` already exists with a different configuration")


def _is_same_dense(vectors: pb.VectorsConfig, request: points.CreateVectorNameRequest) -> bool:
    is_unnamed = vectors.WhichOneof("config") == "params"
    params = vectors.params if is_unnamed else vectors.params_map.map[request.vector_name]
    given = request.dense_config
    return (params.size, params.distance, params.multivector_config, params.datatype) == (
        given.size,
        given.distance,
        given.multivector_config,
        given.datatype,
    ) and params.HasField("multivector_config") == given.HasField("multivector_config")


def _is_same_sparse(params: pb.SparseVectorParams, request: points.CreateVectorNameRequest) -> bool:
    given = request.sparse_config
    return (params.modifier, params.index.datatype) == (given.modifier, given.datatype)
