"""Learning from the calls that Understudy makes itself: hydration and replay.

Promises: what Qdrant answers to them counts as what it answers to clients, for the very credential that each call
carried. So a Qdrant without keys is known as one, and a key that is revoked is no longer used for replay.
"""

from __future__ import annotations

from server.credentials.door import Credentials
from server.rpc import METHODS, Backend, Call, Kind, Reply


class Witness:
    """A `rpc.Backend` in front of Qdrant that tells `credentials` of each answer."""

    def __init__(self, inner: Backend, credentials: Credentials) -> None:
        self._inner = inner
        self._credentials = credentials

    async def handle(self, call: Call) -> Reply:
        """See Backend."""
        reply = await self._inner.handle(call)
        row = METHODS.get(call.method)
        self._credentials.saw(call, row.kind if row is not None else Kind.ADMIN, reply)
        return reply
