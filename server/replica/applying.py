"""Plain and filtered writes, done to an open transaction.

Promises: the state afterwards is the one that Qdrant would have for the points that the replica holds; points that are
missing are passed over (`missing_point` names the first); what was touched is noted. A filter may match every point:
of those only keys are held in memory, and a batch of points at a time; payloads are changed without their vectors.
Writes to a collection that is not here raise Refusal. Does not check requests beyond what it needs to apply them:
`resolving` did.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from google.protobuf.message import Message

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control
from server.replica import catalogue, checks, paths, payload_edits
from server.replica import requests as r
from server.replica.baseline_rows import Keeper
from server.replica.former_rows import Cause, FormerRows
from server.replica.paths import parse_or_refuse
from server.replica.points import Key, key_of, keys_of, text_of
from server.replica.reads import Reads, batches
from server.replica.records import Collection, Record
from server.replica.resolving import Matching, Resolver, already_exists
from server.replica.sharding import selector_of
from server.replica.store import Transaction
from server.replica.touched import Touched
from server.replica.vector_forms import canonical_map, fields_of, named

_PAGE_POINTS = 1000


class Applier:
    """Applies the operations of one log entry. `synced`: Qdrant has done it, so it cannot be wrong.

    `keeper` keeps what a pending entry changes. `former` takes down what each point was before; None = nobody does.
    """

    def __init__(
        self,
        tx: Transaction,
        matching: Matching,
        touched: Touched,
        seq: int,
        *,
        synced: bool,
        retry_of: int = 0,
        keeper: Keeper | None = None,
        former: FormerRows | None = None,
    ) -> None:
        self._tx = tx
        self._former = former
        self._matching = matching
        self._touched = touched
        self._seq = seq
        self._synced = synced
        self._cause = Cause(seq, synced, retry_of)
        self._keeper = keeper
        # False: what Qdrant did may depend on what it held.
        self._is_told = True
        self._shard_keys = b""

    def apply(self, method: str, request: Message) -> None:
        """Do one operation. Raises Refusal."""
        if isinstance(request, pb.UpdateBatchPoints):
            for part_method, part in r.parts_of(request):
                self.apply(part_method, part)
            return
        self._shard_keys = selector_of(request)
        _APPLY[method](self, request)

    def missing_point(self, request: Any) -> str:
        """The first point that the request names and the whole collection lacks, "" for none."""
        collection = self._tx.collection(request.collection_name)
        if collection is None or not catalogue.is_whole(collection):
            return ""
        keys = named_keys(request)
        existing = self._tx.has(collection.cid, keys)
        return next((text_of(key) for key in keys if key not in existing), "")

    # --- points ------------------------------------------------------------------------------------------------------

    def _upsert(self, request: pb.UpsertPoints) -> None:
        if request.HasField("update_filter") or request.update_mode != pb.UpdateMode.Upsert:
            self._upsert_conditional(request)
            return
        collection = catalogue.find(self._tx, request.collection_name)
        fields = fields_of(catalogue.config_of(collection).params)
        records: dict[Key, Record] = {}
        for at, point in enumerate(request.points):
            key = key_of(point.id)
            vectors = named(canonical_map(point.vectors, fields, f"points[{at}]"))
            body = pb.PointStruct()
            payload_edits.overwrite(body.payload, point.payload)
            records[key] = Record(key, body.SerializeToString(deterministic=True), vectors)
        self._put(collection, records.values(), is_whole=self._is_told)

    def _upsert_conditional(self, request: pb.UpsertPoints) -> None:
        collection = catalogue.find(self._tx, request.collection_name)
        if not catalogue.is_whole(collection):
            # Which points the remote took is not known here: every one that it may have taken counts as touched.
            self._touched.points(collection.cid, keys_of(point.id for point in request.points), self._seq)
        judged = replace(collection, completeness=control.COMPLETENESS_COMPLETE)
        resolver = Resolver(_Whole(self._tx, judged), self._matching, len(request.points))
        self._is_told = not self._synced
        for method, plain in resolver.resolve(r.UPSERT, request) or []:
            self.apply(method, plain)
        self._is_told = True

    def _update_vectors(self, request: pb.UpdatePointVectors) -> None:
        collection = catalogue.find(self._tx, request.collection_name)
        keys = [key_of(point.id) for point in request.points]
        chosen = set(keys)
        if request.HasField("update_filter"):
            chosen &= set(self._matching(self._tx, collection, request.update_filter))
        fields = fields_of(catalogue.config_of(collection).params)
        records = self._tx.fetch(collection.cid, chosen)
        self._touched.points(collection.cid, keys, self._seq)
        for at, (key, point) in enumerate(zip(keys, request.points, strict=True)):
            if key not in records:
                continue
            vectors = pb.NamedVectors.FromString(records[key].vectors)
            for name, vector in canonical_map(point.vectors, fields, f"points[{at}]").items():
                vectors.vectors[name].CopyFrom(vector)
            records[key] = replace(records[key], vectors=vectors.SerializeToString(deterministic=True))
        self._put(collection, records.values())

    def _delete(self, request: pb.DeletePoints) -> None:
        collection, keys = self._selected(request, request.points)
        names_them = request.points.WhichOneof("points_selector_one_of") == "points"
        self._keep(collection, keys, is_whole=names_them)
        self._tx.remove(collection.cid, keys)

    def _delete_vectors(self, request: pb.DeletePointVectors) -> None:
        collection, present = self._about_to_change(request, request.points_selector)
        for batch in batches(present, _PAGE_POINTS):
            found = self._tx.fetch(collection.cid, batch).values()
            self._tx.put(collection.cid, [_without_vectors(record, request.vectors.names) for record in found])

    def _set_payload(self, request: pb.SetPayloadPoints) -> None:
        path = parse_or_refuse(request.key) if request.HasField("key") else None

        def edit(payload: payload_edits.Payload) -> None:
            if path is None:
                payload_edits.merge(payload, request.payload)
            else:
                payload_edits.set_at(payload, path, request.payload)

        self._edit_payloads(request, request.points_selector, edit)

    def _overwrite_payload(self, request: pb.SetPayloadPoints) -> None:
        self._edit_payloads(
            request, request.points_selector, lambda payload: payload_edits.overwrite(payload, request.payload)
        )

    def _delete_payload(self, request: pb.DeletePayloadPoints) -> None:
        paths = [parse_or_refuse(key) for key in request.keys]

        def edit(payload: payload_edits.Payload) -> None:
            for path in paths:
                payload_edits.delete_at(payload, path)

        self._edit_payloads(request, request.points_selector, edit)

    def _clear_payload(self, request: pb.ClearPayloadPoints) -> None:
        self._edit_payloads(request, request.points, lambda payload: payload.clear())

    def _edit_payloads(
        self, request: Any, selector: pb.PointsSelector, edit: Callable[[payload_edits.Payload], None]
    ) -> None:
        collection, present = self._about_to_change(request, selector)
        for batch in batches(present, _PAGE_POINTS):
            edited = []
            for record in self._tx.fetch(collection.cid, batch, vectors=False).values():
                body = pb.PointStruct.FromString(record.payload)
                edit(body.payload)
                edited.append(replace(record, payload=body.SerializeToString(deterministic=True)))
            self._tx.put_payloads(collection.cid, edited)

    def _about_to_change(self, request: Any, selector: pb.PointsSelector) -> tuple[Collection, list[Key]]:
        """The points that are there of those selected, noted and kept as they are: keys only, it may be all of them."""
        collection, keys = self._selected(request, selector)
        existing = self._tx.has(collection.cid, keys)
        present = [key for key in keys if key in existing]
        self._touched.points(collection.cid, present, self._seq)
        self._keep(collection, present, is_whole=False)
        return collection, present

    def _selected(self, request: Any, selector: pb.PointsSelector) -> tuple[Collection, list[Key]]:
        collection = catalogue.find(self._tx, request.collection_name)
        if selector.WhichOneof("points_selector_one_of") == "filter":
            # What the remote matched may differ from what matches here: any point may have changed.
            self._touched.collection(collection.cid, self._seq)
            return collection, self._matching(self._tx, collection, selector.filter)
        keys = keys_of(selector.points.ids)
        self._touched.points(collection.cid, keys, self._seq)
        return collection, keys

    def _put(self, collection: Collection, records: Iterable[Record], *, is_whole: bool = False) -> None:
        kept = list(records)
        keys = [record.key for record in kept]
        self._touched.points(collection.cid, keys, self._seq)
        self._keep(collection, keys, is_whole=is_whole)
        self._tx.put(collection.cid, kept)

    def _keep(self, collection: Collection, keys: Sequence[Key], *, is_whole: bool) -> None:
        """What is about to be changed, for those who want to know what it was. `is_whole`: whatever it was."""
        if self._keeper is not None:
            self._keeper.keep(collection, keys)
        if self._former is not None:
            self._former.note(self._tx, collection, keys, self._cause, is_whole=is_whole, shard_keys=self._shard_keys)

    # --- collections -------------------------------------------------------------------------------------------------

    def _create_field_index(self, request: pb.CreateFieldIndexCollection) -> None:
        collection = self._changed(request.collection_name)
        schema = catalogue.schema_of(checks.schema_type(request), request.field_index_params)
        self._tx.save_schema(collection.cid, paths.canonical(request.field_name), schema)

    def _delete_field_index(self, request: pb.DeleteFieldIndexCollection) -> None:
        collection = self._changed(request.collection_name)
        self._tx.save_schema(collection.cid, paths.canonical(request.field_name), None)

    def _create_vector_name(self, request: pb.CreateVectorNameRequest) -> None:
        collection = self._changed(request.collection_name)
        config = catalogue.config_of(collection)
        if request.vector_name in fields_of(config.params):
            return
        catalogue.add_vector(config.params, request)
        self._tx.save_collection(replace(collection, config=config.SerializeToString(deterministic=True)))

    def _delete_vector_name(self, request: pb.DeleteVectorNameRequest) -> None:
        collection = self._changed(request.collection_name)
        config = catalogue.config_of(collection)
        catalogue.remove_vector(config.params, request.vector_name)
        self._tx.save_collection(replace(collection, config=config.SerializeToString(deterministic=True)))
        self._touched.collection(collection.cid, self._seq)
        after: Key | None = None
        while page := self._tx.scan(collection.cid, after, _PAGE_POINTS):
            after = page[-1].key
            self._tx.put(collection.cid, [_without_vectors(record, (request.vector_name,)) for record in page])

    def _create(self, request: collections.CreateCollection) -> None:
        name = request.collection_name
        existing = self._tx.collection(name)
        if existing is not None and existing.name == name:
            if not self._synced:
                raise already_exists(name)
            # Qdrant has made it anew, so the one here was deleted there by somebody else.
            self._tx.drop_collection(existing.cid)
        # Made offline while nobody knows what the remote holds: it may hold a collection of this name, with points.
        is_new = self._synced or catalogue.is_known(self._tx)
        self._tx.save_collection(
            Collection(
                name=name,
                config=catalogue.new_config(request).SerializeToString(deterministic=True),
                completeness=control.COMPLETENESS_COMPLETE if is_new else control.COMPLETENESS_EMPTY,
                as_of_seq=self._seq,
                created_here=is_new and not self._synced,
            )
        )
        self._touched.name(name, self._seq)

    def _update(self, request: collections.UpdateCollection) -> None:
        collection = self._changed(request.collection_name)
        config = catalogue.changed_config(catalogue.config_of(collection), request)
        self._tx.save_collection(replace(collection, config=config.SerializeToString(deterministic=True)))

    def _drop(self, request: collections.DeleteCollection) -> None:
        collection = self._tx.collection(request.collection_name)
        if collection is not None and collection.name == request.collection_name:
            self._tx.drop_collection(collection.cid)
        self._touched.name(request.collection_name, self._seq)

    def _change_aliases(self, request: collections.ChangeAliases) -> None:
        for action in request.actions:
            form = action.WhichOneof("action")
            if form == "create_alias":
                collection = catalogue.find(self._tx, action.create_alias.collection_name)
                self._tx.set_alias(action.create_alias.alias_name, collection.name)
                self._touched.name(action.create_alias.alias_name, self._seq)
            elif form == "delete_alias":
                self._tx.delete_alias(action.delete_alias.alias_name)
                self._touched.name(action.delete_alias.alias_name, self._seq)
            elif form == "rename_alias":
                self._rename_alias(action.rename_alias)

    def _rename_alias(self, rename: collections.RenameAlias) -> None:
        target = self._tx.aliases().get(rename.old_alias_name)
        if target is not None:
            self._tx.delete_alias(rename.old_alias_name)
            self._tx.set_alias(rename.new_alias_name, target)
        self._touched.name(rename.old_alias_name, self._seq)
        self._touched.name(rename.new_alias_name, self._seq)

    def _changed(self, name: str) -> Collection:
        collection = catalogue.find(self._tx, name)
        self._touched.name(collection.name, self._seq)
        return collection


class _Whole(Reads):
    """The transaction, with one collection taken for whole: conditions are judged by what is here."""

    def __init__(self, tx: Transaction, collection: Collection) -> None:
        self._tx = tx
        self._judged = collection

    def connection(self) -> sqlite3.Connection:
        return self._tx.connection()

    def collection(self, name: str) -> Collection | None:
        return self._judged


def named_keys(request: Any) -> list[Key]:
    """The points that a request names by id, each once, in order."""
    if isinstance(request, pb.UpdatePointVectors):
        return keys_of(point.id for point in request.points)
    selector: pb.PointsSelector | None = getattr(request, "points_selector", None)
    if selector is None and isinstance(request, pb.ClearPayloadPoints):
        selector = request.points
    return keys_of(selector.points.ids) if selector is not None else []


def _without_vectors(record: Record, names: Iterable[str]) -> Record:
    vectors = pb.NamedVectors.FromString(record.vectors)
    for name in names:
        if name in vectors.vectors:
            del vectors.vectors[name]
    return replace(record, vectors=vectors.SerializeToString(deterministic=True))


_Handler: TypeAlias = Callable[[Applier, Any], None]
_APPLY: Mapping[str, _Handler] = {
    r.UPSERT: Applier._upsert,
    r.DELETE: Applier._delete,
    r.UPDATE_VECTORS: Applier._update_vectors,
    r.DELETE_VECTORS: Applier._delete_vectors,
    r.SET_PAYLOAD: Applier._set_payload,
    r.OVERWRITE_PAYLOAD: Applier._overwrite_payload,
    r.DELETE_PAYLOAD: Applier._delete_payload,
    r.CLEAR_PAYLOAD: Applier._clear_payload,
    r.POINTS + "CreateFieldIndex": Applier._create_field_index,
    r.POINTS + "DeleteFieldIndex": Applier._delete_field_index,
    r.POINTS + "CreateVectorName": Applier._create_vector_name,
    r.POINTS + "DeleteVectorName": Applier._delete_vector_name,
    r.COLLECTIONS + "Create": Applier._create,
    r.COLLECTIONS + "Update": Applier._update,
    r.COLLECTIONS + "Delete": Applier._drop,
    r.COLLECTIONS + "UpdateAliases": Applier._change_aliases,
}
