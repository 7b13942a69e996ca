"""What hydration copies reaches the replica without its secrets."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server.scrub import Scrubber
from server.sieve import FormerSieve, Sieve
from server.telemetry import Telemetry

SECRET = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"


@dataclass
class Keeper:
    """A replica that keeps what it is given."""

    pages: list[control_pb.ImportPageRequest] = field(default_factory=list)
    catalogues: list[control_pb.ImportCatalogueRequest] = field(default_factory=list)
    compared: list[control_pb.ComparePageRequest] = field(default_factory=list)
    verified: list[control_pb.NoteVerifiedRequest] = field(default_factory=list)

    async def import_page(self, request: control_pb.ImportPageRequest) -> control_pb.ImportPageResponse:
        self.pages.append(request)
        return control_pb.ImportPageResponse(imported=1)

    async def compare_page(self, request: control_pb.ComparePageRequest) -> control_pb.ComparePageResponse:
        self.compared.append(request)
        return control_pb.ComparePageResponse(differing=1)

    async def note_verified(self, request: control_pb.NoteVerifiedRequest) -> control_pb.NoteVerifiedResponse:
        self.verified.append(request)
        return control_pb.NoteVerifiedResponse()

    async def import_catalogue(self, request: control_pb.ImportCatalogueRequest) -> control_pb.ImportCatalogueResponse:
        self.catalogues.append(request)
        return control_pb.ImportCatalogueResponse(wanted=["c"])

    async def set_completeness(self, request: control_pb.SetCompletenessRequest) -> control_pb.SetCompletenessResponse:
        return control_pb.SetCompletenessResponse()

    async def status(self) -> control_pb.StatusResponse:
        return control_pb.StatusResponse(applied_seq=7)


def point(text: str) -> points_pb2.RetrievedPoint:
    made = points_pb2.RetrievedPoint(id=common.PointId(num=1))
    made.payload["text"].string_value = text
    made.payload["year"].integer_value = 2020
    return made


@pytest.mark.parametrize("single_ids", [False, True])
async def test_pages(single_ids: bool) -> None:
    keeper = Keeper()
    sieve = Sieve(keeper, Scrubber.load(None), Telemetry.silent())
    kind = points_pb2.GetResponse if single_ids else points_pb2.ScrollResponse
    page = kind(result=[point(f"the token {SECRET}")]).SerializeToString()
    answer = await sieve.import_page(control_pb.ImportPageRequest(collection="c", page=page, single_ids=single_ids))
    assert answer.imported == 1
    kept = kind.FromString(keeper.pages[0].page).result[0].payload
    assert SECRET.encode() not in keeper.pages[0].page
    assert kept["text"].string_value.startswith("the token [REDACTED:") and kept["year"].integer_value == 2020


async def test_a_clean_page_is_handed_on_as_it_is() -> None:
    keeper = Keeper()
    sieve = Sieve(keeper, Scrubber.load(None), Telemetry.silent())
    page = points_pb2.ScrollResponse(result=[point("nothing to hide")]).SerializeToString()
    await sieve.import_page(control_pb.ImportPageRequest(collection="c", page=page))
    assert keeper.pages[0].page == page


async def test_collection_infos_and_the_rest() -> None:
    keeper = Keeper()
    sieve = Sieve(keeper, Scrubber.load(None), Telemetry.silent())
    info = collections_pb2.CollectionInfo()
    info.config.metadata["note"].string_value = SECRET
    remote = control_pb.RemoteCollection(name="c", info=info.SerializeToString())
    answer = await sieve.import_catalogue(control_pb.ImportCatalogueRequest(collections=[remote], whole=True))
    assert list(answer.wanted) == ["c"] and keeper.catalogues[0].whole
    assert SECRET.encode() not in keeper.catalogues[0].collections[0].info
    assert (await sieve.status()).applied_seq == 7


async def test_what_is_compared_is_what_would_be_stored() -> None:
    """Else every point with a secret would look like drift, for ever."""
    keeper = Keeper()
    sieve = Sieve(keeper, Scrubber.load(None), Telemetry.silent())
    page = points_pb2.ScrollResponse(result=[point(f"the token {SECRET}")]).SerializeToString()
    answer = await sieve.compare_page(control_pb.ComparePageRequest(collection="c", page=page, since_seq=3))
    await sieve.import_page(control_pb.ImportPageRequest(collection="c", page=page))
    assert answer.differing == 1
    assert keeper.compared[0].since_seq == 3
    assert keeper.compared[0].page == keeper.pages[0].page
    assert SECRET.encode() not in keeper.compared[0].page
    clean = points_pb2.ScrollResponse(result=[point("nothing")]).SerializeToString()
    await sieve.compare_page(control_pb.ComparePageRequest(page=clean))
    assert keeper.compared[1].page == clean
    await sieve.note_verified(control_pb.NoteVerifiedRequest(collection="c", verified_unix_ns=5))
    assert keeper.verified[0].verified_unix_ns == 5


class FormerKeeper:
    """A replica that is asked what Qdrant has lost."""

    def __init__(self) -> None:
        self.judged: list[control_pb.JudgeFormerRequest] = []

    async def list_former(self, request: control_pb.ListFormerRequest) -> control_pb.ListFormerResponse:
        return control_pb.ListFormerResponse(next_after=request.after + 1)

    async def judge_former(self, request: control_pb.JudgeFormerRequest) -> control_pb.JudgeFormerResponse:
        self.judged.append(request)
        return control_pb.JudgeFormerResponse(foreign=1)


async def test_what_is_judged_as_lost_is_what_would_be_stored() -> None:
    """Else a point with a secret would be overwritten with its redacted copy, or never be found lost."""
    keeper = FormerKeeper()
    sieve = FormerSieve(keeper, Scrubber.load(None))
    page = points_pb2.GetResponse(result=[point(f"the token {SECRET}")]).SerializeToString()
    answer = await sieve.judge_former(control_pb.JudgeFormerRequest(collection="c", page=page, is_log_whole=True))
    assert answer.foreign == 1
    (judged,) = keeper.judged
    assert (judged.collection, judged.is_log_whole) == ("c", True)
    kept = points_pb2.GetResponse.FromString(judged.page).result[0].payload
    assert kept["text"].string_value.startswith("the token [REDACTED:") and kept["year"].integer_value == 2020
    assert (await sieve.list_former(control_pb.ListFormerRequest(after=4))).next_after == 5
