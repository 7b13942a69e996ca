"""Which forwarded calls change a collection although the log has no entry for them."""

from __future__ import annotations

import pytest

from generated.qdrant import collections_pb2 as pb
from server.rpc import METHODS, Call, Offline
from server.unlogged import unlogged_change

_SET_UP = "/qdrant.Collections/UpdateCollectionClusterSetup"
_DELETE_SHARD_KEY = "/qdrant.Collections/DeleteShardKey"
_OPERATIONS = {
    each.name for each in pb.UpdateCollectionClusterSetupRequest.DESCRIPTOR.oneofs_by_name["operation"].fields
}
_NAMED = pb.CollectionExistsRequest(collection_name="größe").SerializeToString()


@pytest.mark.parametrize("row", METHODS.values(), ids=lambda row: row.path)
def test_of_the_methods_that_are_known(row) -> None:
    request = row.request()
    if "collection_name" in request.DESCRIPTOR.fields_by_name:
        request.collection_name = "c"
    changed = unlogged_change(Call(row.path, request.SerializeToString()))
    assert changed == ("c" if row.path == _DELETE_SHARD_KEY else "")
    assert not changed or row.offline is Offline.REFUSED


@pytest.mark.parametrize("operation", sorted(_OPERATIONS))
def test_of_the_operations_on_a_cluster(operation: str) -> None:
    request = pb.UpdateCollectionClusterSetupRequest(collection_name="c")
    getattr(request, operation).SetInParent()
    changed = unlogged_change(Call(_SET_UP, request.SerializeToString()))
    assert changed == ("c" if operation in ("delete_shard_key", "replicate_points") else "")


@pytest.mark.parametrize(
    ("method", "body", "changed"),
    [
        ("/qdrant.Points/FromTheFuture", _NAMED, "größe"),
        ("/qdrant.Points/Getaway", _NAMED, "größe"),
        ("/qdrant.Snapshots/Recover", _NAMED + b"\x12\x01x", "größe"),
        ("/qdrant.Points/GetMany", _NAMED, ""),
        ("/qdrant.Points/Query", _NAMED, ""),
        ("/qdrant.Points/QueryPairs", _NAMED, ""),
        ("/qdrant.Collections/ListIndexes", _NAMED, ""),
        ("/qdrant.StorageRead/Anything", _NAMED, ""),
        ("/other.Service/Method", _NAMED, ""),
        ("/qdrant.Points/FromTheFuture", b"", ""),
        # Its first field is a number, or its body no protobuf, or its name no text.
        ("/qdrant.Points/FromTheFuture", b"\x08\x01", ""),
        ("/qdrant.Points/FromTheFuture", b"\xff\xff\xff", ""),
        ("/qdrant.Points/FromTheFuture", b"\x0a\x01\xff", ""),
        (_DELETE_SHARD_KEY, b"\xff\xff\xff", ""),
        (_SET_UP, b"\xff\xff\xff", ""),
    ],
)
def test_of_newer_methods_and_bodies_that_cannot_be_read(method: str, body: bytes, changed: str) -> None:
    assert unlogged_change(Call(method, body)) == changed
