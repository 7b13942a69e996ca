"""Generated code is what the protos give, the protos are what the pinned client has, and `METHODS` covers them."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor

from generated.qdrant import collections_service_pb2, points_service_pb2, qdrant_pb2, snapshots_service_pb2
from server.rpc import METHODS, WAL_KINDS, Kind, Offline
from tools.generate import ROOT, stale_files

PROTOS = sorted(path.stem for path in (ROOT / "protos" / "qdrant").glob("*.proto"))
SERVICES = {
    name: service
    for module in (collections_service_pb2, points_service_pb2, snapshots_service_pb2, qdrant_pb2)
    for name, service in module.DESCRIPTOR.services_by_name.items()
}


def test_generated_code_is_fresh() -> None:
    assert stale_files(ROOT / "generated") == []


def test_stale_code_shows(tmp_path: Path) -> None:
    copy = tmp_path / "generated"
    shutil.copytree(ROOT / "generated", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "qdrant" / "points_pb2.py").write_text("# something else\n")
    (copy / "left_over.py").write_text("")
    (copy / "qdrant" / "points_pb2.pyi").unlink()
    assert stale_files(copy) == ["left_over.py", "qdrant/points_pb2.py", "qdrant/points_pb2.pyi"]


@pytest.mark.parametrize("name", PROTOS)
def test_descriptors_equal_those_of_the_pinned_client(name: str) -> None:
    ours = import_module(f"generated.qdrant.{name}_pb2").DESCRIPTOR
    theirs = import_module(f"qdrant_client.grpc.{name}_pb2").DESCRIPTOR
    assert ours.name == theirs.name
    assert ours.serialized_pb == theirs.serialized_pb
    parsed = descriptor_pb2.FileDescriptorProto.FromString(ours.serialized_pb)
    assert parsed.package == "qdrant"


def test_the_client_has_no_proto_that_is_not_here() -> None:
    folder = Path(import_module("qdrant_client.grpc").__file__ or "").parent
    assert sorted(path.stem.removesuffix("_pb2") for path in folder.glob("*_pb2.py")) == PROTOS


def test_every_method_of_the_api_has_a_row_and_no_other() -> None:
    wanted = {f"/{service.full_name}/{method.name}" for service in SERVICES.values() for method in service.methods}
    assert set(METHODS) == wanted


@pytest.mark.parametrize("path", sorted(METHODS))
def test_a_row_has_the_request_of_its_method(path: str) -> None:
    method = _method(path)
    assert METHODS[path].path == path
    assert METHODS[path].request.DESCRIPTOR is method.input_type
    assert not method.client_streaming
    assert not method.server_streaming


def test_log_kinds_are_unique_and_belong_to_logged_writes() -> None:
    logged = [row for row in METHODS.values() if row.offline is Offline.LOGGED]
    assert len({row.wal_kind for row in logged}) == len(logged) == len(WAL_KINDS)
    for row in METHODS.values():
        assert (row.wal_kind > 0) == (row.offline is Offline.LOGGED), row.path
        if row.offline is Offline.LOGGED:
            assert row.kind is Kind.WRITE, row.path
        assert bool(row.why_refused) == (row.offline is Offline.REFUSED), row.path


def test_log_kinds_never_change() -> None:
    """Numbers are on disk: a new method takes a new number, an old one keeps its own."""
    assert {number: path.rpartition("/")[2] for number, path in WAL_KINDS.items()} == {
        1: "Upsert",
        2: "Delete",
        3: "UpdateVectors",
        4: "DeleteVectors",
        5: "SetPayload",
        6: "OverwritePayload",
        7: "DeletePayload",
        8: "ClearPayload",
        9: "UpdateBatch",
        10: "CreateFieldIndex",
        11: "DeleteFieldIndex",
        12: "CreateVectorName",
        13: "DeleteVectorName",
        14: "Create",
        15: "Update",
        16: "Delete",
        17: "UpdateAliases",
    }


def _method(path: str) -> MethodDescriptor:
    service, _, name = path.removeprefix("/qdrant.").partition("/")
    found: MethodDescriptor = SERVICES[service].methods_by_name[name]
    return found
