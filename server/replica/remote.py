"""What hydration asks of Qdrant, as typed questions over raw calls.

Promises: each answer is parsed once; a status of Qdrant is a `RemoteRefused`, a dead connection the errors of
`upstream`. Asks for no more than the strict mode of a collection allows, as far as the last `catalogue` tells: pages of
at most `max_query_limit` points, and no exact count where `search_allow_exact` is false. Does not retry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from generated.qdrant import collections_pb2, points_pb2, qdrant_pb2
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server.clock import Clock
from server.errors import UnderstudyError
from server.rpc import COLLECTIONS, HEALTH_CHECK, POINTS, Backend, Call, Code, Metadata, Reply, is_too_large

M = TypeVar("M", bound=Message)


# What a Qdrant answers that is away, busy or slow as a whole.
_OF_QDRANT = frozenset((Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.CANCELLED))


class RemoteRefused(UnderstudyError):
    """Qdrant answered a question of hydration with a status."""

    def __init__(self, method: str, code: Code, details: str) -> None:
        super().__init__(f"Qdrant: {method}: {code.name} {details}")
        self.code = code
        self._details = details

    @property
    def is_too_large(self) -> bool:
        """Whether less must be asked for at a time: see `rpc.is_too_large`."""
        return is_too_large(self.code, self._details)

    @property
    def is_gone(self) -> bool:
        """Whether the collection is no more."""
        return self.code is Code.NOT_FOUND

    @property
    def is_of_the_collection(self) -> bool:
        """Whether it may be for this collection only, such as one that Qdrant could not load."""
        return not self.wants_credential and self.code not in _OF_QDRANT

    @property
    def wants_credential(self) -> bool:
        """Whether another credential may help."""
        return self.code in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What Qdrant holds: the request that brings it into the replica, and the (rough) points of each collection.

    `broken`: collections of which Qdrant cannot tell how they are, and what it says instead.
    """

    request: control_pb.ImportCatalogueRequest
    points: dict[str, int]
    broken: dict[str, str]


@dataclass(frozen=True, slots=True)
class Count:
    """How many points a collection holds; by an estimate where Qdrant counts no better."""

    points: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class _Limits:
    """What the strict mode of a collection leaves to ask for; `page_points` 0 = any number."""

    page_points: int = 0
    counts_exactly: bool = True

    @classmethod
    def of(cls, config: collections_pb2.StrictModeConfig) -> _Limits:
        if not config.enabled:
            return cls()
        return cls(config.max_query_limit, config.search_allow_exact or not config.HasField("search_allow_exact"))


_NO_LIMITS = _Limits()


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of a collection: the raw ScrollResponse, how many points, where the next one begins ("" = the end)."""

    body: bytes
    points: int
    next_offset: bytes


class Remote:
    """Questions to Qdrant. `credential` gives the metadata that it wants, None = none is known."""

    def __init__(
        self, backend: Backend, clock: Clock, timeout_seconds: float, credential: Callable[[], Metadata | None]
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._credential = credential
        self._limits: dict[str, _Limits] = {}

    async def catalogue(self) -> Catalogue:
        """Collections with their infos, aliases and version; `since_seq` is left to the caller."""
        version = await self._ask(HEALTH_CHECK, qdrant_pb2.HealthCheckRequest(), qdrant_pb2.HealthCheckReply)
        listed = await self._ask(
            COLLECTIONS + "List",
            collections_pb2.ListCollectionsRequest(),
            collections_pb2.ListCollectionsResponse,
        )
        collections, points, limits, broken = [], {}, {}, {}
        for each in listed.collections:
            try:
                info = await self._info(each.name)
            except RemoteRefused as refusal:
                if not refusal.is_of_the_collection:
                    raise
                broken[each.name] = str(refusal)
                collections.append(control_pb.RemoteCollection(name=each.name, info_unknown=True))
                continue
            if info is not None:
                collections.append(control_pb.RemoteCollection(name=each.name, info=info.SerializeToString()))
                points[each.name] = info.points_count
                limits[each.name] = _Limits.of(info.config.strict_mode_config)
        self._limits = limits
        aliases = await self._ask(
            COLLECTIONS + "ListAliases",
            collections_pb2.ListAliasesRequest(),
            collections_pb2.ListAliasesResponse,
        )
        request = control_pb.ImportCatalogueRequest(
            collections=collections,
            aliases=[
                control_pb.RemoteAlias(alias=each.alias_name, collection=each.collection_name)
                for each in aliases.aliases
            ],
            remote_version=version.version,
            whole=True,
        )
        return Catalogue(request, points, broken)

    async def _info(self, name: str) -> collections_pb2.CollectionInfo | None:
        """What Qdrant says of a collection; None when the collection went since it was listed."""
        question = collections_pb2.GetCollectionInfoRequest(collection_name=name)
        try:
            answer = await self._ask(COLLECTIONS + "Get", question, collections_pb2.GetCollectionInfoResponse)
        except RemoteRefused as refusal:
            if refusal.is_gone:
                return None
            raise
        return answer.result

    async def count(self, name: str) -> Count:
        """How many points a collection holds, exactly where Qdrant allows that."""
        is_exact = self._limits.get(name, _NO_LIMITS).counts_exactly
        question = points_pb2.CountPoints(collection_name=name, exact=is_exact)
        answer = await self._ask(POINTS + "Count", question, points_pb2.CountResponse)
        return Count(answer.result.count, is_exact)

    async def page(self, name: str, offset: bytes, limit: int) -> Page:
        """Points in id order from `offset` on (a serialized PointId, "" = the start), with everything they have.

        At most `limit` of them; fewer where Qdrant gives out fewer at a time.
        """
        most = self._limits.get(name, _NO_LIMITS).page_points
        question = points_pb2.ScrollPoints(
            collection_name=name,
            limit=min(limit, most) if most else limit,
            with_payload=points_pb2.WithPayloadSelector(enable=True),
            with_vectors=points_pb2.WithVectorsSelector(enable=True),
        )
        if offset:
            question.offset.ParseFromString(offset)
        reply = await self._call(POINTS + "Scroll", question)
        answer = _parse(reply.body, points_pb2.ScrollResponse)
        following = answer.next_page_offset.SerializeToString() if answer.HasField("next_page_offset") else b""
        return Page(reply.body, len(answer.result), following)

    async def points(self, name: str, ids: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
        """The raw GetResponse for serialized PointIds, and those of them that Qdrant does not have."""
        asked = {body: common.PointId.FromString(body) for body in ids}
        question = points_pb2.GetPoints(
            collection_name=name,
            ids=asked.values(),
            with_payload=points_pb2.WithPayloadSelector(enable=True),
            with_vectors=points_pb2.WithVectorsSelector(enable=True),
        )
        reply = await self._call(POINTS + "Get", question)
        present = {_identity(point.id) for point in _parse(reply.body, points_pb2.GetResponse).result}
        return reply.body, [body for body, point_id in asked.items() if _identity(point_id) not in present]

    async def _ask(self, method: str, question: Message, answer: type[M]) -> M:
        return _parse((await self._call(method, question)).body, answer)

    async def _call(self, method: str, question: Message) -> Reply:
        deadline = self._clock.monotonic() + self._timeout_seconds
        call = Call(method, question.SerializeToString(), self._credential() or (), deadline)
        reply = await self._backend.handle(call)
        if not reply.is_ok:
            raise RemoteRefused(method, reply.code, reply.details)
        return reply


def _identity(point_id: common.PointId) -> int | str:
    return point_id.uuid or point_id.num


def _parse(body: bytes, kind: type[M]) -> M:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise RemoteRefused(kind.DESCRIPTOR.full_name, Code.DATA_LOSS, f"the answer cannot be read: {error}") from error
