from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Entry(_message.Message):
    __slots__ = ("method", "request", "resolved", "maybe_applied", "collection", "tenant", "point_count", "retry_of", "real_collection")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_FIELD_NUMBER: _ClassVar[int]
    MAYBE_APPLIED_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    POINT_COUNT_FIELD_NUMBER: _ClassVar[int]
    RETRY_OF_FIELD_NUMBER: _ClassVar[int]
    REAL_COLLECTION_FIELD_NUMBER: _ClassVar[int]
    method: str
    request: bytes
    resolved: _containers.RepeatedCompositeFieldContainer[Operation]
    maybe_applied: bool
    collection: str
    tenant: str
    point_count: int
    retry_of: int
    real_collection: str
    def __init__(self, method: _Optional[str] = ..., request: _Optional[bytes] = ..., resolved: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ..., maybe_applied: _Optional[bool] = ..., collection: _Optional[str] = ..., tenant: _Optional[str] = ..., point_count: _Optional[int] = ..., retry_of: _Optional[int] = ..., real_collection: _Optional[str] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("method", "request")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    method: str
    request: bytes
    def __init__(self, method: _Optional[str] = ..., request: _Optional[bytes] = ...) -> None: ...
