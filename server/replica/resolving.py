"""From a write as the client meant it to plain operations: Qdrant's checks, filters and conditions turned into ids.

Promises: what comes out is what Qdrant would do to the points that the replica holds, says it with ids only, and may be
applied twice. Refuses what Qdrant would refuse, with its text. Where the replica does not hold the whole collection,
nothing is resolved and no point is called missing: the request stays as the client meant it. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, cast

from google.protobuf.message import Message

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from server.replica import catalogue, checks, number_ranges, sharding, strict
from server.replica import requests as r
from server.replica.paths import parse_or_refuse
from server.replica.payload_edits import check_numbers
from server.replica.points import Key, id_of, key_of, keys_of, text_of
from server.replica.reads import Reads
from server.replica.records import Collection
from server.replica.refusal import NotServed, Refusal, empty_update, invalid, no_point, no_vector_name, wrong_input
from server.replica.vector_forms import checked_map, fields_of
from server.rpc import Code

# What one write becomes: None = it is plain as it stands, else the plain writes that replace it, in order.
Plain: TypeAlias = "tuple[str, Message]"
Resolved: TypeAlias = "list[Plain] | None"


class Matching(Protocol):
    """Finds points: `search.matching_keys`."""

    def __call__(self, reads: Reads, collection: Collection, condition: common.Filter, /) -> list[Key]:
        """Keys of the points that match, in key order. Raises Refusal for a filter that Qdrant refuses."""
        ...


class Resolver:
    """Resolves against one view of the store: the committed state, or an open transaction.

    A filter that matches more than `most_points` stays a filter: so many ids would not fit into one log entry.
    `checks_numbers`: payloads may hold numbers that Qdrant refuses (`payload_edits.may_hold_unfit_numbers`).
    """

    def __init__(self, reads: Reads, matching: Matching, most_points: int, *, checks_numbers: bool = False) -> None:
        self._reads = reads
        self._matching = matching
        self._most_points = most_points
        self._checks_numbers = checks_numbers

    def resolve(self, method: str, request: Message) -> Resolved:
        """The plain writes for one request that is no batch. Raises Refusal."""
        sharding.check_write(self._reads, request)
        strict.check_write(self._reads, request)
        return _RESOLVE[method](self, request)

    # --- points ------------------------------------------------------------------------------------------------------

    def _upsert(self, request: pb.UpsertPoints) -> Resolved:
        if self._checks_numbers:
            for point in request.points:
                check_numbers(point.payload.values())
        collection = catalogue.find(self._reads, request.collection_name)
        if not request.points:
            raise empty_update()
        fields = fields_of(catalogue.config_of(collection).params)
        keys = []
        for at, point in enumerate(request.points):
            keys.append(key_of(point.id))
            if not point.HasField("vectors"):
                raise invalid("Expected some vectors")
            checked_map(point.vectors, fields, f"points[{at}]")
        mode = request.update_mode
        if mode == pb.UpdateMode.Upsert and not request.HasField("update_filter"):
            return None
        if not catalogue.is_whole(collection):
            self._check_filter(collection, request)
            return None
        existing = self._reads.has(collection.cid, keys)
        if mode == pb.UpdateMode.InsertOnly:
            kept = set(keys) - existing
        else:
            kept = set(keys) - self._excluded(collection, request, existing)
            if mode == pb.UpdateMode.UpdateOnly:
                kept &= existing
        plain = _without(request, "points", "update_filter", "update_mode")
        plain.points.extend(point for point, key in zip(request.points, keys, strict=True) if key in kept)
        return [(r.UPSERT, plain) if plain.points else nothing(request.collection_name)]

    def _excluded(self, collection: Collection, request: Any, existing: set[Key]) -> set[Key]:
        """Existing points that the request's `update_filter` leaves alone."""
        if not request.HasField("update_filter") or not existing:
            return set()
        narrowed = common.Filter(
            must=[
                common.Condition(has_id=common.HasIdCondition(has_id=[id_of(key) for key in sorted(existing)])),
                common.Condition(filter=request.update_filter),
            ]
        )
        return existing - set(self._matching(self._reads, collection, narrowed))

    def _check_filter(self, collection: Collection, request: Any) -> None:
        """A filter that Qdrant refuses is refused also where it is not resolved."""
        if request.HasField("update_filter"):
            self._matching(self._reads, collection, request.update_filter)

    def _update_vectors(self, request: pb.UpdatePointVectors) -> Resolved:
        collection = catalogue.find(self._reads, request.collection_name)
        if not request.points:
            raise empty_update()
        fields = fields_of(catalogue.config_of(collection).params)
        keys = []
        for at, point in enumerate(request.points):
            if not point.HasField("id"):
                raise invalid("id is expected")
            keys.append(key_of(point.id))
            if not point.HasField("vectors"):
                raise invalid("vectors is expected")
            checked_map(point.vectors, fields, f"points[{at}]", tells_names=False)
        if not catalogue.is_whole(collection):
            self._check_filter(collection, request)
            return None
        existing = self._reads.has(collection.cid, keys)
        missing = [key for key in dict.fromkeys(keys) if key not in existing]
        kept = existing - self._excluded(collection, request, existing)
        if missing and request.wait and not kept:
            raise no_point(text_of(missing[0]))
        if not missing and not request.HasField("update_filter"):
            return None
        plain = _without(request, "points", "update_filter")
        plain.points.extend(point for point, key in zip(request.points, keys, strict=True) if key in kept)
        return [(r.UPDATE_VECTORS, plain) if plain.points else nothing(request.collection_name)]

    def _delete(self, request: pb.DeletePoints) -> Resolved:
        if not request.HasField("points"):
            raise invalid("PointSelector is missing")
        return self._selected(r.DELETE, request, "points", must_exist=False)

    def _clear_payload(self, request: pb.ClearPayloadPoints) -> Resolved:
        if not request.HasField("points"):
            raise invalid("PointSelector is missing")
        return self._selected(r.CLEAR_PAYLOAD, request, "points")

    def _set_payload(self, request: pb.SetPayloadPoints) -> Resolved:
        if self._checks_numbers:
            check_numbers(request.payload.values())
        if request.HasField("key"):
            parse_or_refuse(request.key)
        return self._selected(r.SET_PAYLOAD, request, "points_selector")

    def _overwrite_payload(self, request: pb.SetPayloadPoints) -> Resolved:
        if self._checks_numbers:
            check_numbers(request.payload.values())
        return self._selected(r.OVERWRITE_PAYLOAD, request, "points_selector")

    def _delete_payload(self, request: pb.DeletePayloadPoints) -> Resolved:
        for key in request.keys:
            parse_or_refuse(key)
        return self._selected(r.DELETE_PAYLOAD, request, "points_selector")

    def _delete_vectors(self, request: pb.DeletePointVectors) -> Resolved:
        _demand_selector(request, "points_selector")
        if not request.HasField("vectors"):
            raise invalid("vectors is expected")
        collection = catalogue.find(self._reads, request.collection_name)
        fields = fields_of(catalogue.config_of(collection).params)
        if not request.vectors.names:
            raise wrong_input("No vector names provided")
        for name in request.vectors.names:
            if name not in fields:
                raise no_vector_name(name)
        return self._selected(r.DELETE_VECTORS, request, "points_selector")

    def _selected(self, method: str, request: Any, field: str, *, must_exist: bool = True) -> Resolved:
        """A write to points chosen by ids or by a filter."""
        _demand_selector(request, field)
        selector: pb.PointsSelector = getattr(request, field)
        by_ids = selector.WhichOneof("points_selector_one_of") == "points"
        keys = keys_of(selector.points.ids) if by_ids else []
        collection = catalogue.find(self._reads, request.collection_name)
        if by_ids and not keys:
            raise empty_update()
        if not by_ids:
            matched = self._matching(self._reads, collection, selector.filter)
            if not catalogue.is_whole(collection) or len(matched) > self._most_points:
                return None
            return [_with_ids(method, request, field, matched)]
        if not must_exist or not catalogue.is_whole(collection):
            return None
        existing = self._reads.has(collection.cid, keys)
        missing = [key for key in keys if key not in existing]
        if not missing:
            return None
        if request.wait and not existing:
            raise no_point(text_of(missing[0]))
        # Qdrant changes the points that are there and says NOT_FOUND; so does the answer to this entry.
        return [_with_ids(method, request, field, [key for key in keys if key in existing])]

    # --- collections -------------------------------------------------------------------------------------------------

    def _create_field_index(self, request: pb.CreateFieldIndexCollection) -> Resolved:
        checks.check_field_index(request)
        catalogue.find(self._reads, request.collection_name)
        return None

    def _delete_field_index(self, request: pb.DeleteFieldIndexCollection) -> Resolved:
        parse_or_refuse(request.field_name)
        catalogue.find(self._reads, request.collection_name)
        return None

    def _create_vector_name(self, request: pb.CreateVectorNameRequest) -> Resolved:
        if request.WhichOneof("vector_config") is None:
            raise invalid("vector_config is required (dense_config or sparse_config)")
        collection = catalogue.find(self._reads, request.collection_name)
        checks.check_vector_name(request, catalogue.config_of(collection))
        return None

    def _delete_vector_name(self, request: pb.DeleteVectorNameRequest) -> Resolved:
        catalogue.find(self._reads, request.collection_name)
        return None

    def _create(self, request: collections.CreateCollection) -> Resolved:
        checks.check_new_collection(request)
        name = request.collection_name
        if name in self._reads.aliases():
            raise Refusal(
                Code.INVALID_ARGUMENT,
                f"Wrong input: Can't create collection with name {name}. Alias with the same name already exists",
            )
        if self._reads.collection(name) is not None:
            raise already_exists(name)
        return None

    def _update(self, request: collections.UpdateCollection) -> Resolved:
        number_ranges.check(request)
        collection = catalogue.find(self._reads, request.collection_name)
        checks.check_collection_update(request, catalogue.config_of(collection))
        return None

    def _drop(self, request: collections.DeleteCollection) -> Resolved:
        number_ranges.check(request)
        name = request.collection_name
        collection = self._reads.collection(name)
        if collection is None or collection.name != name:
            if not catalogue.is_known(self._reads):
                raise catalogue.missing(self._reads, name)
            return None
        if not catalogue.is_whole(collection) and not collection.created_here:
            raise NotServed(
                f"collection `{name}` is not wholly in the replica, so deleting it could destroy data unseen"
            )
        return None

    def _change_aliases(self, request: collections.ChangeAliases) -> Resolved:
        number_ranges.check(request)
        aliases = self._reads.aliases()
        names = {collection.name for collection in self._reads.collections()}
        actions: list[collections.AliasOperations] = []
        for action in request.actions:
            form = action.WhichOneof("action")
            if form == "create_alias":
                target, alias = action.create_alias.collection_name, action.create_alias.alias_name
                if target not in names:
                    raise catalogue.missing(self._reads, target)
                if alias in names:
                    raise already_exists(alias)
                aliases[alias] = target
                actions.append(action)
            elif form == "delete_alias":
                aliases.pop(action.delete_alias.alias_name, None)
                actions.append(action)
            elif form == "rename_alias":
                old, new = action.rename_alias.old_alias_name, action.rename_alias.new_alias_name
                if old not in aliases:
                    raise self._no_alias(old)
                aliases[new] = aliases.pop(old)
                actions.extend(_repointed(old, new, aliases[new]))
        if len(actions) == len(request.actions):
            return None
        plain = _without(request, "actions")
        plain.actions.extend(actions)
        return [(r.COLLECTIONS + "UpdateAliases", plain)]

    def _no_alias(self, name: str) -> Refusal:
        if not catalogue.is_known(self._reads):
            return NotServed(f"alias `{name}` is not in the replica, and Qdrant's aliases were never read")
        return Refusal(Code.NOT_FOUND, f"Not found: Alias {name} does not exists!")


def already_exists(name: str) -> Refusal:
    """ALREADY_EXISTS for a collection."""
    return Refusal(Code.ALREADY_EXISTS, f"Wrong input: Collection `{name}` already exists!")


def _demand_selector(request: Any, field: str) -> None:
    if not request.HasField(field):
        raise invalid("points_selector is expected")
    if getattr(request, field).WhichOneof("points_selector_one_of") is None:
        raise invalid("Malformed PointsSelector type")


def _without(request: Message, *fields: str) -> Any:
    plain: Any = type(request)()
    plain.CopyFrom(request)
    for field in fields:
        plain.ClearField(field)
    return plain


def _with_ids(method: str, request: Message, field: str, keys: list[Key]) -> Plain:
    """The same write to these points."""
    plain = _without(request, field)
    if not keys:
        return nothing(plain.collection_name)
    getattr(plain, field).points.ids.extend(id_of(key) for key in keys)
    return method, plain


def _repointed(old: str, new: str, collection: str) -> list[collections.AliasOperations]:
    """A rename that may be done twice: take the old name away, give the new one."""
    return [
        collections.AliasOperations(delete_alias=collections.DeleteAlias(alias_name=old)),
        collections.AliasOperations(create_alias=collections.CreateAlias(collection_name=collection, alias_name=new)),
    ]


def nothing(collection_name: str) -> Plain:
    """A write that Qdrant accepts and that changes nothing.

    Qdrant refuses updates that name no point, so this sets no key on the points with none of no ids: nothing in every
    reading of it.
    """
    return r.SET_PAYLOAD, pb.SetPayloadPoints(
        collection_name=collection_name, wait=True, points_selector=pb.PointsSelector(filter=r.NOBODY)
    )


def is_nothing(method: str, request: Message) -> bool:
    """Whether a write is the one that `nothing` makes."""
    return method == r.SET_PAYLOAD and (method, request) == nothing(cast(pb.SetPayloadPoints, request).collection_name)


_Handler: TypeAlias = Callable[[Resolver, Any], Resolved]
_RESOLVE: Mapping[str, _Handler] = {
    r.UPSERT: Resolver._upsert,
    r.DELETE: Resolver._delete,
    r.UPDATE_VECTORS: Resolver._update_vectors,
    r.DELETE_VECTORS: Resolver._delete_vectors,
    r.SET_PAYLOAD: Resolver._set_payload,
    r.OVERWRITE_PAYLOAD: Resolver._overwrite_payload,
    r.DELETE_PAYLOAD: Resolver._delete_payload,
    r.CLEAR_PAYLOAD: Resolver._clear_payload,
    r.POINTS + "CreateFieldIndex": Resolver._create_field_index,
    r.POINTS + "DeleteFieldIndex": Resolver._delete_field_index,
    r.POINTS + "CreateVectorName": Resolver._create_vector_name,
    r.POINTS + "DeleteVectorName": Resolver._delete_vector_name,
    r.COLLECTIONS + "Create": Resolver._create,
    r.COLLECTIONS + "Update": Resolver._update,
    r.COLLECTIONS + "Delete": Resolver._drop,
    r.COLLECTIONS + "UpdateAliases": Resolver._change_aliases,
}
