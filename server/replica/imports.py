"""What the proxy brings in from Qdrant: the catalogue, pages of points, and how far the log goes.

Promises: nothing that a log entry later than the page touched is overwritten or removed; ids left alone for that
reason are given back. A page asked for before the replica can tell what came later is refused with
FAILED_PRECONDITION: ask for it again. Each import is one transaction. A point that is here already as it came is not
written again. Only one thread may call it at a time, but for `compare`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import replace

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control
from server.replica import baseline_rows, catalogue, former_rows, paths, ranges
from server.replica import requests as r
from server.replica.points import Key, id_of, key_of
from server.replica.records import Collection, Record
from server.replica.refusal import Refusal, no_collection
from server.replica.store import Store, Transaction
from server.replica.touched import Touched
from server.replica.vector_forms import fields_of, from_output, named
from server.rpc import Code

_LOG_ID = "log_id"


class Imports:
    """Brings remote state in."""

    def __init__(self, store: Store, touched: Touched) -> None:
        self._store = store
        self._touched = touched

    # --- the log -----------------------------------------------------------------------------------------------------

    def attach(self, request: control.AttachRequest) -> control.AttachResponse:
        """Fit the cursor to the log. Another log, one that ends early or begins late, or a doubt makes all STALE."""
        with self._store.transaction() as tx:
            applied_seq, known_log = tx.applied_seq, tx.meta(_LOG_ID)
            is_other = known_log != request.log_id and (known_log != "" or applied_seq > 0)
            # Another log is applied from its start; a log that lost its tail goes on where it ends; what was retired
            # before this replica saw it is at Qdrant only.
            follows = max(0 if is_other else min(applied_seq, request.last_seq), request.first_seq - 1)
            rewound = is_other or follows != applied_seq
            if rewound:
                # What was kept of entries that the log has lost still tells what Qdrant acknowledged.
                former_rows.forget_all(tx) if is_other else former_rows.rewind(tx, follows)
                applied_seq = follows
                tx.set_applied_seq(applied_seq)
                baseline_rows.forget(tx)
            if rewound or not known_log:
                tx.set_meta(former_rows.BEGAN_AT, str(request.last_seq))
            if rewound or request.in_doubt:
                # Before any entry is applied: what a point was before it is not known either.
                for collection in tx.collections():
                    catalogue.distrust(tx, collection)
            tx.set_meta(_LOG_ID, request.log_id)
            tx.set_meta(catalogue.NO_REMOTE, "1" if request.no_remote else "")
        if rewound:
            self._touched.restart(applied_seq)
        return control.AttachResponse(applied_seq=applied_seq, rewound=rewound)

    # --- the catalogue -----------------------------------------------------------------------------------------------

    def catalogue(self, request: control.ImportCatalogueRequest) -> control.ImportCatalogueResponse:
        """Make collections and aliases those of the remote, but for what later entries changed."""
        since = self._demand_memory(request.since_seq)
        answer = control.ImportCatalogueResponse()
        with self._store.transaction() as tx:
            for remote in request.collections:
                if not remote.info_unknown and not self._touched.is_name_later(remote.name, since):
                    self._import_collection(tx, remote, answer)
            if request.whole:
                self._drop_gone(tx, {remote.name for remote in request.collections}, since, answer)
                tx.set_meta(catalogue.KNOWN, "1")
            self._import_aliases(tx, request, since, answer.kept)
            if request.remote_version:
                tx.set_meta(catalogue.REMOTE_VERSION, request.remote_version)
        return answer

    def _import_collection(
        self, tx: Transaction, remote: control.RemoteCollection, answer: control.ImportCatalogueResponse
    ) -> None:
        info = collections.CollectionInfo.FromString(remote.info)
        config = info.config.SerializeToString(deterministic=True)
        existing = tx.collection(remote.name)
        if existing is not None and existing.name != remote.name:
            tx.delete_alias(remote.name)
            existing = None
        if existing is not None and not _have_same_vectors(existing, info.config):
            _drop(tx, existing, answer)
            existing = None
        if existing is None:
            collection = Collection(name=remote.name, config=config, completeness=control.COMPLETENESS_EMPTY)
        else:
            collection = existing
        # It exists remotely, so what was made here is no longer only here.
        seen = replace(collection, config=config, info=remote.info, created_here=False)
        # A look that shows nothing new leaves alone what readers keep in memory of the collection.
        collection = seen if seen == existing else tx.save_collection(seen)
        self._import_schema(tx, collection, info)
        if not catalogue.is_whole(collection):
            answer.wanted.append(remote.name)

    def _import_schema(self, tx: Transaction, collection: Collection, info: collections.CollectionInfo) -> None:
        remote = {paths.canonical(field): schema for field, schema in info.payload_schema.items()}
        for field in collection.schema:
            if field not in remote:
                tx.save_schema(collection.cid, field, None)
        for field, schema in remote.items():
            body = schema.SerializeToString(deterministic=True)
            if collection.schema.get(field) != body:
                tx.save_schema(collection.cid, field, body)

    def _drop_gone(
        self, tx: Transaction, remote_names: set[str], since: int, answer: control.ImportCatalogueResponse
    ) -> None:
        """Take away what the remote lacks. A remote without any collection may have lost its disk: points stay then."""
        for collection in tx.collections():
            if collection.name in remote_names or self._touched.is_name_later(collection.name, since):
                continue
            if collection.points and not remote_names:
                if catalogue.is_whole(collection):
                    catalogue.distrust(tx, collection)
                answer.kept.append(collection.name)
            else:
                _drop(tx, collection, answer)

    def _import_aliases(
        self, tx: Transaction, request: control.ImportCatalogueRequest, since: int, kept: Container[str]
    ) -> None:
        remote = {alias.alias: alias.collection for alias in request.aliases}
        for alias, target in remote.items():
            if not self._touched.is_name_later(alias, since) and tx.collection(target) is not None:
                tx.set_alias(alias, target)
        if request.whole:
            for alias, target in tx.aliases().items():
                if alias not in remote and target not in kept and not self._touched.is_name_later(alias, since):
                    tx.delete_alias(alias)

    # --- points ------------------------------------------------------------------------------------------------------

    def page(self, request: control.ImportPageRequest) -> control.ImportPageResponse:
        """Put a page of points in and take away what the page's range lacks."""
        since = self._demand_memory(request.since_seq)
        retrieved = _points_in(request)
        records = {record.key: record for record in map(record_of, retrieved)}
        with self._store.transaction() as tx:
            collection = tx.collection(request.collection)
            if collection is None:
                raise no_collection(request.collection)
            if self._touched.is_name_later(request.collection, since):
                # It may be another collection of the same name by now.
                raise Refusal(
                    Code.FAILED_PRECONDITION, f"collection `{collection.name}` changed after {since}: read it again"
                )
            gone = self._gone_keys(tx, collection, request, records.keys())
            skipped = {key for key in [*records, *gone] if self._touched.is_point_later(collection.cid, key, since)}
            imported = {key: record for key, record in records.items() if key not in skipped}
            here = tx.fetch(collection.cid, imported)
            # What is here already is left alone: the index and what is kept in memory stay as they are.
            fresh = [record for key, record in imported.items() if here.get(key) != record]
            rounded = rounded_vectors(collection)
            changed = sum(1 for record in fresh if not ranges.agree(here.get(record.key), record, rounded))
            tx.put(collection.cid, fresh)
            removed = tx.remove(collection.cid, [key for key in gone if key not in skipped])
        return control.ImportPageResponse(
            imported=len(imported),
            removed=removed,
            skipped=[id_of(key).SerializeToString() for key in sorted(skipped)],
            changed=changed,
        )

    def compare(self, request: control.ComparePageRequest) -> control.ComparePageResponse:
        """Compare a page with the same range here, both as they would be stored. Thread-safe."""
        there = {record.key: record for record in map(record_of, r.parse(pb.ScrollResponse, request.page).result)}
        first = _key_in(request.first) if request.first else None
        after = _key_in(request.after) if request.after else None
        with self._store.watched(), self._store.snapshot():
            collection = self._store.collection(request.collection)
            if collection is None:
                raise no_collection(request.collection)
            here = self._store.range_records(collection.cid, first, after)
            look = ranges.look(there, here, rounded_vectors(collection))
        return control.ComparePageResponse(
            remote=control.RangeDigest(points=look.remote.points, content=look.remote.content),
            local=control.RangeDigest(points=look.local.points, content=look.local.content),
            differing=look.differing,
        )

    def note_verified(self, request: control.NoteVerifiedRequest) -> control.NoteVerifiedResponse:
        """Note when a collection was compared. One that is gone meanwhile, or in doubt, is passed over."""
        with self._store.transaction() as tx:
            collection = tx.collection(request.collection)
            if collection is not None and catalogue.is_whole(collection):
                tx.set_verified(collection.cid, request.verified_unix_ns)
        return control.NoteVerifiedResponse()

    def _gone_keys(
        self, tx: Transaction, collection: Collection, request: control.ImportPageRequest, present: Iterable[Key]
    ) -> list[Key]:
        if request.single_ids:
            absent = {_key_in(body) for body in request.absent} - set(present)
            return sorted(tx.has(collection.cid, absent))
        first = _key_in(request.first) if request.first else None
        after = _key_in(request.after) if request.after else None
        kept = set(present)
        return [key for key in tx.range_keys(collection.cid, first, after) if key not in kept]

    def set_completeness(self, request: control.SetCompletenessRequest) -> control.SetCompletenessResponse:
        """Set the completeness of one collection, or of all. One that is gone meanwhile is passed over.

        What is said to be COMPLETE is on the medium with all that was copied: the doubt before it is given up then.
        Whoever copied it names the doubts that it knew: another one since, or another collection, is a Refusal.
        """
        is_whole = request.completeness == control.COMPLETENESS_COMPLETE
        is_copy = request.HasField("doubt_number")
        is_doubt = request.completeness == control.COMPLETENESS_STALE and not is_copy
        with self._store.durable_transaction() if is_whole else self._store.transaction() as tx:
            found = [tx.collection(request.collection)] if request.collection else tx.collections()
            for collection in found:
                if is_copy:
                    _demand_trust(collection, request)
                if collection is None:
                    continue
                if is_doubt and not catalogue.was_whole(collection):
                    catalogue.distrust(tx, collection)
                    continue
                if is_doubt:
                    tx.doubt(collection.cid)
                tx.set_completeness(
                    collection.cid,
                    request.completeness,
                    as_of_seq=request.as_of_seq,
                    resume_at=request.resume_at,
                    expected_points=request.expected_points,
                )
                if request.verified_unix_ns:
                    tx.set_verified(collection.cid, request.verified_unix_ns)
        return control.SetCompletenessResponse()

    def _demand_memory(self, since_seq: int) -> int:
        if not self._touched.knows(since_seq):
            raise Refusal(
                Code.FAILED_PRECONDITION,
                f"what came after entry {since_seq} is not known, only after {self._touched.floor_seq}: read it again",
            )
        return since_seq


def _demand_trust(collection: Collection | None, request: control.SetCompletenessRequest) -> None:
    if collection is None or collection.doubt_number != request.doubt_number:
        raise Refusal(
            Code.FAILED_PRECONDITION, f"collection `{request.collection}` was put in doubt or made anew meanwhile"
        )


def rounded_vectors(collection: Collection) -> frozenset[str]:
    """Vectors that Qdrant and the replica each normalise by themselves: their last bits may differ."""
    fields = fields_of(catalogue.config_of(collection).params)
    return frozenset(name for name, field in fields.items() if field.is_cosine)


def _drop(tx: Transaction, collection: Collection, answer: control.ImportCatalogueResponse) -> None:
    if collection.points:
        answer.dropped.append(collection.name)
    tx.drop_collection(collection.cid)


def _have_same_vectors(collection: Collection, remote: collections.CollectionConfig) -> bool:
    """Whether points of the one configuration fit the other."""
    local = catalogue.config_of(collection)
    return _shape(local.params) == _shape(remote.params)


def _shape(params: collections.CollectionParams) -> dict[str, tuple[object, ...]]:
    form = params.vectors_config.WhichOneof("config")
    dense = {"": params.vectors_config.params} if form == "params" else dict(params.vectors_config.params_map.map)
    shape: dict[str, tuple[object, ...]] = {
        name: (one.size, one.distance, one.datatype, one.HasField("multivector_config")) for name, one in dense.items()
    }
    shape.update({f"sparse {name}": (one.modifier,) for name, one in params.sparse_vectors_config.map.items()})
    return shape


def _points_in(request: control.ImportPageRequest) -> list[pb.RetrievedPoint]:
    if request.single_ids:
        return list(r.parse(pb.GetResponse, request.page).result)
    return list(r.parse(pb.ScrollResponse, request.page).result)


def record_of(point: pb.RetrievedPoint) -> Record:
    """A point of an answer of Qdrant's, as it would be stored."""
    payload = pb.PointStruct(payload=point.payload).SerializeToString(deterministic=True)
    return Record(key_of(point.id), payload, named(from_output(point.vectors)))


def _key_in(body: bytes) -> Key:
    return key_of(r.parse(common.PointId, body))
