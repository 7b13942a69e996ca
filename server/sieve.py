"""Secrets stay out of the copy that hydration makes.

Promises: every page of points and every collection info passes the scrub rules before the replica, and so the disk,
sees it. The work runs in a thread: a page may be large. Does not look at requests of clients, the router does that.
"""

from __future__ import annotations

import asyncio

from generated.qdrant import collections_pb2, points_pb2
from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server.replica.pages import FormerControl, ImportControl
from server.scrub import Scrubber
from server.telemetry import Telemetry


class FormerSieve:
    """A `FormerControl` in front of another one: what is judged is what would be stored."""

    def __init__(self, inner: FormerControl, scrubber: Scrubber) -> None:
        self._inner = inner
        self._scrubber = scrubber

    async def list_former(self, request: control_pb.ListFormerRequest) -> control_pb.ListFormerResponse:
        """See FormerControl."""
        return await self._inner.list_former(request)

    async def judge_former(self, request: control_pb.JudgeFormerRequest) -> control_pb.JudgeFormerResponse:
        """See FormerControl."""
        request.page, _ = await asyncio.to_thread(self._scrubber.scrub_message, points_pb2.GetResponse, request.page)
        return await self._inner.judge_former(request)


class Sieve:
    """An `ImportControl` in front of another one."""

    def __init__(self, inner: ImportControl, scrubber: Scrubber, telemetry: Telemetry) -> None:
        self._inner = inner
        self._scrubber = scrubber
        self._telemetry = telemetry

    async def import_catalogue(self, request: control_pb.ImportCatalogueRequest) -> control_pb.ImportCatalogueResponse:
        """See ImportControl."""
        for one in request.collections:
            one.info, redactions = self._scrubber.scrub_message(collections_pb2.CollectionInfo, one.info)
            self._telemetry.metrics.redactions(redactions)
        return await self._inner.import_catalogue(request)

    async def import_page(self, request: control_pb.ImportPageRequest) -> control_pb.ImportPageResponse:
        """See ImportControl."""
        kind = points_pb2.GetResponse if request.single_ids else points_pb2.ScrollResponse
        page, redactions = await asyncio.to_thread(self._scrubber.scrub_message, kind, request.page)
        if redactions:
            request.page = page
            self._telemetry.metrics.redactions(redactions)
        return await self._inner.import_page(request)

    async def compare_page(self, request: control_pb.ComparePageRequest) -> control_pb.ComparePageResponse:
        """See ImportControl: what is compared is what would be stored. Nothing is, so nothing is counted."""
        page, redactions = await asyncio.to_thread(
            self._scrubber.scrub_message, points_pb2.ScrollResponse, request.page
        )
        if redactions:
            request.page = page
        return await self._inner.compare_page(request)

    async def note_verified(self, request: control_pb.NoteVerifiedRequest) -> control_pb.NoteVerifiedResponse:
        """See ImportControl."""
        return await self._inner.note_verified(request)

    async def set_completeness(self, request: control_pb.SetCompletenessRequest) -> control_pb.SetCompletenessResponse:
        """See ImportControl."""
        return await self._inner.set_completeness(request)

    async def status(self) -> control_pb.StatusResponse:
        """See ImportControl."""
        return await self._inner.status()
