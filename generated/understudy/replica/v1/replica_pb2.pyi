from generated.understudy.wal.v1 import entry_pb2 as _entry_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Fate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FATE_UNSPECIFIED: _ClassVar[Fate]
    FATE_LOCAL: _ClassVar[Fate]
    FATE_REMOTE: _ClassVar[Fate]
    FATE_HELD: _ClassVar[Fate]
    FATE_MOOT: _ClassVar[Fate]

class Completeness(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPLETENESS_UNSPECIFIED: _ClassVar[Completeness]
    COMPLETENESS_EMPTY: _ClassVar[Completeness]
    COMPLETENESS_HYDRATING: _ClassVar[Completeness]
    COMPLETENESS_COMPLETE: _ClassVar[Completeness]
    COMPLETENESS_STALE: _ClassVar[Completeness]
FATE_UNSPECIFIED: Fate
FATE_LOCAL: Fate
FATE_REMOTE: Fate
FATE_HELD: Fate
FATE_MOOT: Fate
COMPLETENESS_UNSPECIFIED: Completeness
COMPLETENESS_EMPTY: Completeness
COMPLETENESS_HYDRATING: Completeness
COMPLETENESS_COMPLETE: Completeness
COMPLETENESS_STALE: Completeness

class AttachRequest(_message.Message):
    __slots__ = ("last_seq", "log_id", "no_remote", "first_seq", "in_doubt")
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    NO_REMOTE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQ_FIELD_NUMBER: _ClassVar[int]
    IN_DOUBT_FIELD_NUMBER: _ClassVar[int]
    last_seq: int
    log_id: str
    no_remote: bool
    first_seq: int
    in_doubt: bool
    def __init__(self, last_seq: _Optional[int] = ..., log_id: _Optional[str] = ..., no_remote: _Optional[bool] = ..., first_seq: _Optional[int] = ..., in_doubt: _Optional[bool] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("applied_seq", "rewound")
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    REWOUND_FIELD_NUMBER: _ClassVar[int]
    applied_seq: int
    rewound: bool
    def __init__(self, applied_seq: _Optional[int] = ..., rewound: _Optional[bool] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("method", "request")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    method: str
    request: bytes
    def __init__(self, method: _Optional[str] = ..., request: _Optional[bytes] = ...) -> None: ...

class PrepareResponse(_message.Message):
    __slots__ = ("code", "details", "resolved", "freshness", "failed")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    code: int
    details: str
    resolved: _containers.RepeatedCompositeFieldContainer[_entry_pb2.Operation]
    freshness: Freshness
    failed: bool
    def __init__(self, code: _Optional[int] = ..., details: _Optional[str] = ..., resolved: _Optional[_Iterable[_Union[_entry_pb2.Operation, _Mapping]]] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ..., failed: _Optional[bool] = ...) -> None: ...

class PrepareGroupRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[PrepareRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[PrepareRequest, _Mapping]]] = ...) -> None: ...

class PrepareGroupResponse(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[PrepareResponse]
    def __init__(self, responses: _Optional[_Iterable[_Union[PrepareResponse, _Mapping]]] = ...) -> None: ...

class Freshness(_message.Message):
    __slots__ = ("completeness", "as_of_seq")
    COMPLETENESS_FIELD_NUMBER: _ClassVar[int]
    AS_OF_SEQ_FIELD_NUMBER: _ClassVar[int]
    completeness: Completeness
    as_of_seq: int
    def __init__(self, completeness: _Optional[_Union[Completeness, str]] = ..., as_of_seq: _Optional[int] = ...) -> None: ...

class ApplyRequest(_message.Message):
    __slots__ = ("entries", "replayed_seq", "keeps_former", "forgets_through_seq", "given_up")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_SEQ_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FORMER_FIELD_NUMBER: _ClassVar[int]
    FORGETS_THROUGH_SEQ_FIELD_NUMBER: _ClassVar[int]
    GIVEN_UP_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[LogEntry]
    replayed_seq: int
    keeps_former: bool
    forgets_through_seq: int
    given_up: _containers.RepeatedCompositeFieldContainer[RefusedEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[LogEntry, _Mapping]]] = ..., replayed_seq: _Optional[int] = ..., keeps_former: _Optional[bool] = ..., forgets_through_seq: _Optional[int] = ..., given_up: _Optional[_Iterable[_Union[RefusedEntry, _Mapping]]] = ...) -> None: ...

class LogEntry(_message.Message):
    __slots__ = ("seq", "synced", "entry")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    SYNCED_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    seq: int
    synced: bool
    entry: _entry_pb2.Entry
    def __init__(self, seq: _Optional[int] = ..., synced: _Optional[bool] = ..., entry: _Optional[_Union[_entry_pb2.Entry, _Mapping]] = ...) -> None: ...

class ApplyResponse(_message.Message):
    __slots__ = ("results", "applied_seq")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[Applied]
    applied_seq: int
    def __init__(self, results: _Optional[_Iterable[_Union[Applied, _Mapping]]] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class Applied(_message.Message):
    __slots__ = ("seq", "code", "details", "reply", "freshness")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    code: int
    details: str
    reply: bytes
    freshness: Freshness
    def __init__(self, seq: _Optional[int] = ..., code: _Optional[int] = ..., details: _Optional[str] = ..., reply: _Optional[bytes] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ...) -> None: ...

class ImportCatalogueRequest(_message.Message):
    __slots__ = ("collections", "aliases", "remote_version", "since_seq", "whole", "read_seq")
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    REMOTE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SINCE_SEQ_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    READ_SEQ_FIELD_NUMBER: _ClassVar[int]
    collections: _containers.RepeatedCompositeFieldContainer[RemoteCollection]
    aliases: _containers.RepeatedCompositeFieldContainer[RemoteAlias]
    remote_version: str
    since_seq: int
    whole: bool
    read_seq: int
    def __init__(self, collections: _Optional[_Iterable[_Union[RemoteCollection, _Mapping]]] = ..., aliases: _Optional[_Iterable[_Union[RemoteAlias, _Mapping]]] = ..., remote_version: _Optional[str] = ..., since_seq: _Optional[int] = ..., whole: _Optional[bool] = ..., read_seq: _Optional[int] = ...) -> None: ...

class RemoteCollection(_message.Message):
    __slots__ = ("name", "info", "info_unknown")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    INFO_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    name: str
    info: bytes
    info_unknown: bool
    def __init__(self, name: _Optional[str] = ..., info: _Optional[bytes] = ..., info_unknown: _Optional[bool] = ...) -> None: ...

class RemoteAlias(_message.Message):
    __slots__ = ("alias", "collection")
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    alias: str
    collection: str
    def __init__(self, alias: _Optional[str] = ..., collection: _Optional[str] = ...) -> None: ...

class ImportCatalogueResponse(_message.Message):
    __slots__ = ("wanted", "dropped", "kept")
    WANTED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    wanted: _containers.RepeatedScalarFieldContainer[str]
    dropped: _containers.RepeatedScalarFieldContainer[str]
    kept: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, wanted: _Optional[_Iterable[str]] = ..., dropped: _Optional[_Iterable[str]] = ..., kept: _Optional[_Iterable[str]] = ...) -> None: ...

class ImportPageRequest(_message.Message):
    __slots__ = ("collection", "page", "first", "after", "since_seq", "single_ids", "absent", "read_seq")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    SINCE_SEQ_FIELD_NUMBER: _ClassVar[int]
    SINGLE_IDS_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    READ_SEQ_FIELD_NUMBER: _ClassVar[int]
    collection: str
    page: bytes
    first: bytes
    after: bytes
    since_seq: int
    single_ids: bool
    absent: _containers.RepeatedScalarFieldContainer[bytes]
    read_seq: int
    def __init__(self, collection: _Optional[str] = ..., page: _Optional[bytes] = ..., first: _Optional[bytes] = ..., after: _Optional[bytes] = ..., since_seq: _Optional[int] = ..., single_ids: _Optional[bool] = ..., absent: _Optional[_Iterable[bytes]] = ..., read_seq: _Optional[int] = ...) -> None: ...

class ImportPageResponse(_message.Message):
    __slots__ = ("imported", "removed", "skipped", "changed")
    IMPORTED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    imported: int
    removed: int
    skipped: _containers.RepeatedScalarFieldContainer[bytes]
    changed: int
    def __init__(self, imported: _Optional[int] = ..., removed: _Optional[int] = ..., skipped: _Optional[_Iterable[bytes]] = ..., changed: _Optional[int] = ...) -> None: ...

class ComparePageRequest(_message.Message):
    __slots__ = ("collection", "page", "first", "after", "since_seq")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    SINCE_SEQ_FIELD_NUMBER: _ClassVar[int]
    collection: str
    page: bytes
    first: bytes
    after: bytes
    since_seq: int
    def __init__(self, collection: _Optional[str] = ..., page: _Optional[bytes] = ..., first: _Optional[bytes] = ..., after: _Optional[bytes] = ..., since_seq: _Optional[int] = ...) -> None: ...

class RangeDigest(_message.Message):
    __slots__ = ("points", "content")
    POINTS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    points: int
    content: bytes
    def __init__(self, points: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...

class ComparePageResponse(_message.Message):
    __slots__ = ("remote", "local", "differing")
    REMOTE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    DIFFERING_FIELD_NUMBER: _ClassVar[int]
    remote: RangeDigest
    local: RangeDigest
    differing: int
    def __init__(self, remote: _Optional[_Union[RangeDigest, _Mapping]] = ..., local: _Optional[_Union[RangeDigest, _Mapping]] = ..., differing: _Optional[int] = ...) -> None: ...

class Touch(_message.Message):
    __slots__ = ("point_id", "seq")
    POINT_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    point_id: bytes
    seq: int
    def __init__(self, point_id: _Optional[bytes] = ..., seq: _Optional[int] = ...) -> None: ...

class CompareBaselinesRequest(_message.Message):
    __slots__ = ("collection", "touches", "page", "since_seq", "looker", "sent_seq")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    TOUCHES_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    SINCE_SEQ_FIELD_NUMBER: _ClassVar[int]
    LOOKER_FIELD_NUMBER: _ClassVar[int]
    SENT_SEQ_FIELD_NUMBER: _ClassVar[int]
    collection: str
    touches: _containers.RepeatedCompositeFieldContainer[Touch]
    page: bytes
    since_seq: int
    looker: int
    sent_seq: int
    def __init__(self, collection: _Optional[str] = ..., touches: _Optional[_Iterable[_Union[Touch, _Mapping]]] = ..., page: _Optional[bytes] = ..., since_seq: _Optional[int] = ..., looker: _Optional[int] = ..., sent_seq: _Optional[int] = ...) -> None: ...

class Judged(_message.Message):
    __slots__ = ("point_id", "fate", "until_seq")
    POINT_ID_FIELD_NUMBER: _ClassVar[int]
    FATE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_SEQ_FIELD_NUMBER: _ClassVar[int]
    point_id: bytes
    fate: Fate
    until_seq: int
    def __init__(self, point_id: _Optional[bytes] = ..., fate: _Optional[_Union[Fate, str]] = ..., until_seq: _Optional[int] = ...) -> None: ...

class CompareBaselinesResponse(_message.Message):
    __slots__ = ("changed", "unknown", "applied_seq")
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    changed: _containers.RepeatedCompositeFieldContainer[Judged]
    unknown: int
    applied_seq: int
    def __init__(self, changed: _Optional[_Iterable[_Union[Judged, _Mapping]]] = ..., unknown: _Optional[int] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class SettleBaselinesRequest(_message.Message):
    __slots__ = ("collection", "touches", "page", "changed", "fate", "looker", "sent_seq")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    TOUCHES_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    FATE_FIELD_NUMBER: _ClassVar[int]
    LOOKER_FIELD_NUMBER: _ClassVar[int]
    SENT_SEQ_FIELD_NUMBER: _ClassVar[int]
    collection: str
    touches: _containers.RepeatedCompositeFieldContainer[Touch]
    page: bytes
    changed: _containers.RepeatedScalarFieldContainer[bytes]
    fate: Fate
    looker: int
    sent_seq: int
    def __init__(self, collection: _Optional[str] = ..., touches: _Optional[_Iterable[_Union[Touch, _Mapping]]] = ..., page: _Optional[bytes] = ..., changed: _Optional[_Iterable[bytes]] = ..., fate: _Optional[_Union[Fate, str]] = ..., looker: _Optional[int] = ..., sent_seq: _Optional[int] = ...) -> None: ...

class SettleBaselinesResponse(_message.Message):
    __slots__ = ("until_seq",)
    UNTIL_SEQ_FIELD_NUMBER: _ClassVar[int]
    until_seq: int
    def __init__(self, until_seq: _Optional[int] = ...) -> None: ...

class FormerWindow(_message.Message):
    __slots__ = ("since_seq", "replayed_seq")
    SINCE_SEQ_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_SEQ_FIELD_NUMBER: _ClassVar[int]
    since_seq: int
    replayed_seq: int
    def __init__(self, since_seq: _Optional[int] = ..., replayed_seq: _Optional[int] = ...) -> None: ...

class ListFormerRequest(_message.Message):
    __slots__ = ("window", "after", "limit_points")
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_POINTS_FIELD_NUMBER: _ClassVar[int]
    window: FormerWindow
    after: int
    limit_points: int
    def __init__(self, window: _Optional[_Union[FormerWindow, _Mapping]] = ..., after: _Optional[int] = ..., limit_points: _Optional[int] = ...) -> None: ...

class ListFormerResponse(_message.Message):
    __slots__ = ("collection", "ids", "next_after")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_AFTER_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: _containers.RepeatedScalarFieldContainer[bytes]
    next_after: int
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Iterable[bytes]] = ..., next_after: _Optional[int] = ...) -> None: ...

class JudgeFormerRequest(_message.Message):
    __slots__ = ("window", "collection", "ids", "page", "is_log_whole", "is_unbroken", "refused")
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    IS_LOG_WHOLE_FIELD_NUMBER: _ClassVar[int]
    IS_UNBROKEN_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    window: FormerWindow
    collection: str
    ids: _containers.RepeatedScalarFieldContainer[bytes]
    page: bytes
    is_log_whole: bool
    is_unbroken: bool
    refused: _containers.RepeatedCompositeFieldContainer[RefusedEntry]
    def __init__(self, window: _Optional[_Union[FormerWindow, _Mapping]] = ..., collection: _Optional[str] = ..., ids: _Optional[_Iterable[bytes]] = ..., page: _Optional[bytes] = ..., is_log_whole: _Optional[bool] = ..., is_unbroken: _Optional[bool] = ..., refused: _Optional[_Iterable[_Union[RefusedEntry, _Mapping]]] = ...) -> None: ...

class RefusedEntry(_message.Message):
    __slots__ = ("seq", "ids", "in_part")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    IN_PART_FIELD_NUMBER: _ClassVar[int]
    seq: int
    ids: _containers.RepeatedScalarFieldContainer[bytes]
    in_part: bool
    def __init__(self, seq: _Optional[int] = ..., ids: _Optional[_Iterable[bytes]] = ..., in_part: _Optional[bool] = ...) -> None: ...

class JudgeFormerResponse(_message.Message):
    __slots__ = ("put", "remove", "foreign", "put_under", "remove_under")
    PUT_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    PUT_UNDER_FIELD_NUMBER: _ClassVar[int]
    REMOVE_UNDER_FIELD_NUMBER: _ClassVar[int]
    put: _containers.RepeatedScalarFieldContainer[bytes]
    remove: _containers.RepeatedScalarFieldContainer[bytes]
    foreign: int
    put_under: _containers.RepeatedScalarFieldContainer[bytes]
    remove_under: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, put: _Optional[_Iterable[bytes]] = ..., remove: _Optional[_Iterable[bytes]] = ..., foreign: _Optional[int] = ..., put_under: _Optional[_Iterable[bytes]] = ..., remove_under: _Optional[_Iterable[bytes]] = ...) -> None: ...

class NoteVerifiedRequest(_message.Message):
    __slots__ = ("collection", "verified_unix_ns")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    verified_unix_ns: int
    def __init__(self, collection: _Optional[str] = ..., verified_unix_ns: _Optional[int] = ...) -> None: ...

class NoteVerifiedResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetCompletenessRequest(_message.Message):
    __slots__ = ("collection", "completeness", "as_of_seq", "resume_at", "expected_points", "verified_unix_ns", "doubt_number")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    COMPLETENESS_FIELD_NUMBER: _ClassVar[int]
    AS_OF_SEQ_FIELD_NUMBER: _ClassVar[int]
    RESUME_AT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_POINTS_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    DOUBT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    collection: str
    completeness: Completeness
    as_of_seq: int
    resume_at: bytes
    expected_points: int
    verified_unix_ns: int
    doubt_number: int
    def __init__(self, collection: _Optional[str] = ..., completeness: _Optional[_Union[Completeness, str]] = ..., as_of_seq: _Optional[int] = ..., resume_at: _Optional[bytes] = ..., expected_points: _Optional[int] = ..., verified_unix_ns: _Optional[int] = ..., doubt_number: _Optional[int] = ...) -> None: ...

class SetCompletenessResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("applied_seq", "collections", "catalogue_known", "remote_version", "pid")
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_KNOWN_FIELD_NUMBER: _ClassVar[int]
    REMOTE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    applied_seq: int
    collections: _containers.RepeatedCompositeFieldContainer[CollectionState]
    catalogue_known: bool
    remote_version: str
    pid: int
    def __init__(self, applied_seq: _Optional[int] = ..., collections: _Optional[_Iterable[_Union[CollectionState, _Mapping]]] = ..., catalogue_known: _Optional[bool] = ..., remote_version: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class CollectionState(_message.Message):
    __slots__ = ("name", "completeness", "points", "as_of_seq", "index_lag", "resume_at", "expected_points", "index_state", "verified_unix_ns", "doubt_number")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COMPLETENESS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    AS_OF_SEQ_FIELD_NUMBER: _ClassVar[int]
    INDEX_LAG_FIELD_NUMBER: _ClassVar[int]
    RESUME_AT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_POINTS_FIELD_NUMBER: _ClassVar[int]
    INDEX_STATE_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    DOUBT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    name: str
    completeness: Completeness
    points: int
    as_of_seq: int
    index_lag: int
    resume_at: bytes
    expected_points: int
    index_state: str
    verified_unix_ns: int
    doubt_number: int
    def __init__(self, name: _Optional[str] = ..., completeness: _Optional[_Union[Completeness, str]] = ..., points: _Optional[int] = ..., as_of_seq: _Optional[int] = ..., index_lag: _Optional[int] = ..., resume_at: _Optional[bytes] = ..., expected_points: _Optional[int] = ..., index_state: _Optional[str] = ..., verified_unix_ns: _Optional[int] = ..., doubt_number: _Optional[int] = ...) -> None: ...
