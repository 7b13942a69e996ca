"""PURE. Which calls that only Qdrant can do change what a collection holds: no entry of the log tells the replica.

Promises: a call that may do so names its collection here. What a method of a newer client does is not known: one that
names a collection counts as a change, unless it is called what reads are called. Knows nothing of methods that the
replica serves or the log takes.
"""

from __future__ import annotations

import re

from google.protobuf.message import DecodeError

from generated.qdrant import collections_pb2
from server.rpc import COLLECTIONS, METHODS, Call

_DELETE_SHARD_KEY = COLLECTIONS + "DeleteShardKey"
_CLUSTER_SET_UP = COLLECTIONS + "UpdateCollectionClusterSetup"
# The other operations move shards as they are, or make one that is empty.
_CHANGING_SET_UPS = frozenset(("delete_shard_key", "replicate_points"))
_API = "/qdrant."
_NEWER_READ = re.compile(
    r"/qdrant\.(\w*Read/\w+|\w+/(Count|Discover|Facet|Get|List|Query|Read|Recommend|Scroll|Search)(?![a-z])\w*)"
)


def unlogged_change(call: Call) -> str:
    """The name of the collection that a forwarded call may change past the log, "" for none."""
    if call.method in METHODS:
        may_change = call.method in (_DELETE_SHARD_KEY, _CLUSTER_SET_UP)
    else:
        may_change = call.method.startswith(_API) and _NEWER_READ.fullmatch(call.method) is None
    if not may_change:
        return ""
    # Each request of the API that names one collection names it in the same field; what else there is stays unread.
    request = collections_pb2.UpdateCollectionClusterSetupRequest()
    kind = request if call.method == _CLUSTER_SET_UP else collections_pb2.CollectionExistsRequest()
    try:
        kind.ParseFromString(call.body)
    except DecodeError:
        return ""
    if call.method == _CLUSTER_SET_UP and request.WhichOneof("operation") not in _CHANGING_SET_UPS:
        return ""
    return kind.collection_name
