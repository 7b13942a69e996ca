"""Raw calls for the tests of the offline table, and how two answers are told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from generated.qdrant import collections_service_pb2, points_service_pb2, qdrant_pb2
from server.rpc import Code
from tests.proxy.offline_data import Json, message

TIMEOUT_SECONDS = 30.0
TOLERANCE = 1e-4
_SERVICES = {
    service.full_name: service
    for file in (points_service_pb2, collections_service_pb2, qdrant_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
}
# What no two servers share: the time that it took, numbers of operations, how data lie on their disks.
_PASSING = {"time", "operation_id", "segments_count", "indexed_vectors_count"}


@dataclass
class Answer:
    """What came back: the response in JSON form, or a status."""

    code: Code
    details: str = ""
    response: Json = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)

    @property
    def points(self) -> list[Any]:
        """The ids of the results, in order."""
        return [_id(one["id"]) for one in self.response.get("result", [])]


def _id(given: Json) -> int | str:
    return given["uuid"] if "uuid" in given else int(given.get("num", 0))


def response_type(method: str) -> Any:
    """The message that a method answers with."""
    _, service, name = method.split("/")
    return _SERVICES[service].methods_by_name[name].output_type._concrete_class


class Caller:
    """A channel to a server, for requests in JSON form."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)

    def close(self) -> None:
        """Hang up."""
        self.channel.close()

    def __call__(self, method: str, request: Json, *metadata: tuple[str, str]) -> Answer:
        """Call and wait for the answer, whatever it is."""
        body = message(method, request).SerializeToString()
        try:
            reply, call = self.channel.unary_unary(method).with_call(body, TIMEOUT_SECONDS, metadata)
        except grpc.RpcError as error:
            refusal: Any = error
            return Answer(Code(refusal.code().value[0]), refusal.details(), {}, _trailers(refusal))
        parsed = MessageToDict(response_type(method).FromString(reply), preserving_proto_field_name=True)
        return Answer(Code.OK, "", parsed, _trailers(call))

    def do(self, method: str, request: Json) -> Answer:
        """Call; the answer must be OK."""
        answer = self(method, request)
        assert answer.code is Code.OK, f"{method}: {answer.code.name} {answer.details}"
        return answer


def _trailers(call: Any) -> dict[str, str]:
    return {key: text for key, text in call.trailing_metadata() or () if isinstance(text, str)}


def differences(before: Any, after: Any, passing: tuple[str, ...] = (), place: str = "") -> list[str]:
    """Where two answers in JSON form differ: scores to 1e-4, whatever order results with the same score have."""
    if isinstance(before, dict) and isinstance(after, dict):
        found: list[str] = []
        for key in sorted({*before, *after} - _PASSING - set(passing)):
            if key not in before or key not in after:
                found.append(f"{place}.{key}: {before.get(key, 'nothing')} / {after.get(key, 'nothing')}")
            else:
                found += differences(before[key], after[key], passing, f"{place}.{key}")
        return found
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(_settled(before), _settled(after), strict=True))
        return [line for at, (one, two) in pairs for line in differences(one, two, passing, f"{place}[{at}]")]
    if isinstance(before, float) and isinstance(after, float | int):
        return (
            []
            if math.isclose(before, after, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
            else [f"{place}: {before} / {after}"]
        )
    return [] if before == after else [f"{place}: {before} / {after}"]


def directed(thing: Any, names: frozenset[str], *, here: bool = False) -> Any:
    """An answer with the vectors of these names at length 1: the stand-in forgets to do so when it is restarted."""
    match thing:
        case {"data": list(numbers)} if here:
            length = math.sqrt(sum(number * number for number in numbers)) or 1.0
            return {"data": [number / length for number in numbers]}
        case dict():
            return {key: directed(one, names, here=here or key in names) for key, one in thing.items()}
        case list():
            return [directed(one, names, here=here) for one in thing]
        case _:
            return thing


def _settled(listed: list[Any]) -> list[Any]:
    """Results with one score in the order of their ids; names of collections and aliases in their own order."""
    if not listed or not isinstance(listed[0], dict):
        return listed
    if "id" in listed[0] and any("score" in one or "order_value" in one for one in listed):
        # A score of 0 is left out in JSON.
        return [one for _, run in groupby(listed, _rank) for one in sorted(run, key=lambda hit: str(hit["id"]))]
    by_name = [name for name in ("alias_name", "name") if name in listed[0]]
    return sorted(listed, key=lambda one: str(one[by_name[0]])) if by_name else listed


def _rank(hit: Json) -> tuple[float, str]:
    return round(hit.get("score", 0.0), 4), str(hit.get("order_value"))
