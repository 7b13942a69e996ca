from generated.understudy.wal.v1 import entry_pb2 as _entry_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConflictOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONFLICT_OUTCOME_UNSPECIFIED: _ClassVar[ConflictOutcome]
    CONFLICT_OUTCOME_OVERWRITTEN: _ClassVar[ConflictOutcome]
    CONFLICT_OUTCOME_NOT_WRITTEN: _ClassVar[ConflictOutcome]
    CONFLICT_OUTCOME_QUARANTINED: _ClassVar[ConflictOutcome]
CONFLICT_OUTCOME_UNSPECIFIED: ConflictOutcome
CONFLICT_OUTCOME_OVERWRITTEN: ConflictOutcome
CONFLICT_OUTCOME_NOT_WRITTEN: ConflictOutcome
CONFLICT_OUTCOME_QUARANTINED: ConflictOutcome

class Conflict(_message.Message):
    __slots__ = ("seq", "outcome", "collection", "tenant", "point_id", "wall_unix_ns", "method", "remote", "is_gone", "left_out")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    POINT_ID_FIELD_NUMBER: _ClassVar[int]
    WALL_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REMOTE_FIELD_NUMBER: _ClassVar[int]
    IS_GONE_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    seq: int
    outcome: ConflictOutcome
    collection: str
    tenant: str
    point_id: bytes
    wall_unix_ns: int
    method: str
    remote: bytes
    is_gone: bool
    left_out: _containers.RepeatedCompositeFieldContainer[_entry_pb2.Operation]
    def __init__(self, seq: _Optional[int] = ..., outcome: _Optional[_Union[ConflictOutcome, str]] = ..., collection: _Optional[str] = ..., tenant: _Optional[str] = ..., point_id: _Optional[bytes] = ..., wall_unix_ns: _Optional[int] = ..., method: _Optional[str] = ..., remote: _Optional[bytes] = ..., is_gone: _Optional[bool] = ..., left_out: _Optional[_Iterable[_Union[_entry_pb2.Operation, _Mapping]]] = ...) -> None: ...
