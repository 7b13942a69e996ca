"""Learns from Qdrant's answers, and answers in its place while it is away.

Promises: a credential that Qdrant refuses is forgotten at once; what is kept on disk are keyed hashes, the value of a
credential is in RAM only; comparing takes the same time for a good and a bad credential.

Does not promise to know of a key that was revoked while no call carried it.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server import config
from server.clock import Clock
from server.credentials.ledger import COLLECTIONS_PER_TOKEN, Grant, LedgerFile
from server.credentials.named import collections_in
from server.credentials.presented import API_KEY, Absent, Credential, presented, raw_value
from server.credentials.proof import Proof, is_checked, proof_of
from server.credentials.rights import Right, right_to
from server.rpc import COLLECTIONS, HEALTH_CHECK, Call, Code, Kind, Metadata, Reply, refuse
from server.wal.files import Disk, RealDisk

_NS = 1_000_000_000
_HEALTH = "/grpc.health.v1.Health/"
# The lightest call whose key Qdrant checks.
_QUESTION = COLLECTIONS + "List"
_QUESTION_SECONDS = 1.0
_NONE_GIVEN = "Must provide an API key or an Authorization bearer token"
_UNKNOWN = "Invalid API key or JWT"
_AWAY = "Qdrant is away, and offline only credentials that it was seen to accept are let in"
_DUMMY = bytes(32)


@dataclass(slots=True)
class _Known:
    """A raw value that is in RAM, so that a call with it need not be hashed."""

    digest: bytes
    credential: Credential
    grant: Grant
    may_write: bool = True
    """Whether Qdrant was not seen to forbid it to write."""


class Credentials:
    """Remembers and checks. Belongs to one event loop; `run` writes the file beside it.

    `path` is the ledger's file, `secret` the key of its hashes (32 bytes, kept elsewhere). `has_upstream` tells whether
    a Qdrant is configured now. `problem` is why the file cannot be written at present, `damage` what was wrong with it
    on start; both go to `on_problem` too. Raises DataDirUnusable when the file cannot be used.
    """

    def __init__(  # noqa: PLR0917 - the first six are the contract
        self,
        path: Path,
        secret: bytes,
        configured: config.Keys,
        upstream_key: str | None,
        has_upstream: bool,
        clock: Clock,
        *,
        disk: Disk | None = None,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        self._file = LedgerFile(path, secret, disk or RealDisk())
        self._clock = clock
        self._limit = configured.remembered
        self._on_problem = on_problem
        self._full = self._digest_of(configured.api_key.get_secret_value() if configured.api_key else None)
        self._read_only = self._digest_of(
            configured.read_only_api_key.get_secret_value() if configured.read_only_api_key else None
        )
        self._upstream_key = upstream_key or None
        self._upstream = self._digest_of(self._upstream_key)
        self._for_replay: Credential | None = None
        self._known: dict[str, _Known] = {}
        self._changed = asyncio.Event()
        self._has_writer = False
        self.problem: str | None = None
        self._ledger, self.damage = self._file.load(clock.wall_ns())
        if self.damage is not None:
            self._report(self.damage)
        if has_upstream and not self._ledger.had_upstream:
            self._ledger.had_upstream = True
            self._touch()

    def of(self, call: Call) -> Credential | None:
        """The credential that a call presents, None for none and for several different ones."""
        found = presented(call.metadata)
        return found if isinstance(found, Credential) else None

    def principal(self, call: Call) -> bytes:
        """32 bytes that stand for the caller in the log, b"" for a caller without a credential."""
        value = raw_value(call.metadata)
        if isinstance(value, Absent):
            return b""
        known = self._known.get(value)
        return known.digest if known else self._file.digest(value)

    # --- learning ----------------------------------------------------------------------------------------------------

    def saw(self, call: Call, kind: Kind, reply: Reply) -> None:
        """Learn from Qdrant's own answer to a call, whatever it was; nothing else may be passed here."""
        if reply.code is Code.OK:
            self.saw_accepted(call, kind)
            return
        proof = proof_of(call.method, reply.code, reply.details)
        if proof is Proof.KNOWN:
            self._saw_known(call)
        elif proof is Proof.REFUSED:
            self._saw_refused(call)
        elif proof is Proof.FORBIDDEN:
            self._saw_forbidden(call, kind)

    def saw_accepted(self, call: Call, kind: Kind) -> None:
        """Qdrant answered OK. A look into a dict when that is no news."""
        value = raw_value(call.metadata)
        if value is Absent.ANONYMOUS:
            if not self._ledger.is_open and is_checked(call.method):
                self._saw_open()
            return
        if isinstance(value, Absent) or self._ledger.is_open:
            # While Qdrant serves calls without a key it checks none: that it took this one proves nothing.
            return
        known = self._known.get(value)
        if known is not None:
            known.grant.is_used = True
            if known.grant.writes or (known.grant.reads and kind is Kind.READ):
                return
        if is_checked(call.method):
            self._learn(value, call, kind)

    def _learn(self, value: str, call: Call, kind: Kind) -> None:
        known = self._remember(value)
        if known is None:
            return
        grant, credential = known.grant, known.credential
        before = (grant.reads, grant.writes, len(grant.read_in), len(grant.write_in))
        if credential.is_good_everywhere:
            grant.reads = True
            grant.writes = grant.writes or kind is not Kind.READ
        else:
            claims = credential.claims
            assert claims is not None and claims.collections is not None
            for collection in (collections_in(call) or set()) & claims.collections:
                if len(grant.read_in) < COLLECTIONS_PER_TOKEN:
                    grant.read_in.add(collection)
                    if kind is not Kind.READ:
                        grant.write_in.add(collection)
        if kind is not Kind.READ:
            known.may_write = True
            self._use_for_replay(credential)
        if before != (grant.reads, grant.writes, len(grant.read_in), len(grant.write_in)):
            self._touch()
        elif grant.is_empty:
            self._forget(value)

    def _remember(self, value: str) -> _Known | None:
        """A place for this credential; None when it can never be good offline."""
        known = self._known.get(value)
        if known is not None:
            return known
        found = presented(((API_KEY, value),))
        assert isinstance(found, Credential)
        if found.claims is not None and (
            not found.claims.is_checkable or found.claims.is_expired(self._clock.wall_ns())
        ):
            return None
        digest = self._file.digest(value)
        grant = self._ledger.grants.get(digest)
        if grant is None:
            self._make_room()
            grant = Grant(expires=found.claims.expires if found.claims else None)
            self._ledger.grants[digest] = grant
        self._known[value] = known = _Known(digest, found, grant)
        return known

    def _make_room(self) -> None:
        """One more must fit. What the ledger forgets is no longer known either, so that it is learned again."""
        if len(self._ledger.grants) >= self._limit:
            self._ledger.make_room(self._limit, self._clock.wall_ns() // _NS)
            kept = self._ledger.grants
            self._known = {raw: one for raw, one in self._known.items() if one.digest in kept}

    def _saw_known(self, call: Call) -> None:
        """The key passed Qdrant's check, the request did not: any plain key may at least read."""
        value = raw_value(call.metadata)
        if value is Absent.ANONYMOUS:
            if not self._ledger.is_open:
                self._saw_open()
        elif isinstance(value, str) and not self._ledger.is_open:
            known = self._remember(value)
            if known is None:
                return
            if known.credential.is_token:
                if known.grant.is_empty:
                    self._forget(value)
            elif not known.grant.reads:
                known.grant.reads = True
                self._touch()

    def _saw_open(self) -> None:
        """Qdrant served a call without a key: it checks none, so no key seen until now was proven."""
        self._ledger.is_open = True
        self._ledger.grants.clear()
        self._known.clear()
        self._for_replay = None
        self._touch()

    def _saw_refused(self, call: Call) -> None:
        """The credential is not good. And Qdrant checks: calls without one are no longer proven either."""
        if self._ledger.is_open:
            self._ledger.is_open = False
            self._touch()
        value = raw_value(call.metadata)
        if isinstance(value, str):
            self._forget(value)
            if hmac.compare_digest(self._file.digest(value), self._upstream or _DUMMY):
                self._upstream = None

    def _saw_forbidden(self, call: Call, kind: Kind) -> None:
        """The credential may not do this: forget the right, and with a refused read all rights."""
        value = raw_value(call.metadata)
        if not isinstance(value, str):
            self._saw_refused(call)
            return
        if kind is Kind.READ:
            names = collections_in(call)
            grant = self._ledger.grants.get(self._file.digest(value))
            if grant is None or not names or grant.reads or grant.writes:
                self._forget(value)
                return
            grant.read_in -= names
            grant.write_in -= names
        else:
            grant = self._ledger.grants.get(self._file.digest(value))
            if grant is None:
                return
            grant.writes = False
            grant.write_in -= collections_in(call) or grant.write_in
            if value in self._known:
                self._known[value].may_write = False
            if self._for_replay is not None and self._for_replay.value == value:
                self._for_replay = None
        if grant.is_empty:
            self._forget(value)
        self._touch()

    def _forget(self, value: str) -> None:
        self._known.pop(value, None)
        if self._for_replay is not None and self._for_replay.value == value:
            self._for_replay = None
        if self._ledger.grants.pop(self._file.digest(value), None) is not None:
            self._touch()

    # --- checking ----------------------------------------------------------------------------------------------------

    def check(self, call: Call, kind: Kind, collection: str) -> Reply | None:
        """Whether a call may be answered without Qdrant: None = yes, else what to answer."""
        if call.method == HEALTH_CHECK or call.method.startswith(_HEALTH):
            return None
        found = presented(call.metadata)
        if found is Absent.AMBIGUOUS:
            return refuse(Code.UNAUTHENTICATED, f"{_UNKNOWN}: {found.value}")
        if self._is_open_to_all:
            return None
        if not isinstance(found, Credential):
            return refuse(Code.UNAUTHENTICATED, f"{_NONE_GIVEN}; {_AWAY}")
        digest = self._file.digest(found.value)
        if hmac.compare_digest(digest, self._full or _DUMMY) or hmac.compare_digest(digest, self._upstream or _DUMMY):
            self._accepted_offline(found, kind)
            return None
        if hmac.compare_digest(digest, self._read_only or _DUMMY):
            return None if kind is Kind.READ else _may_not("this key may only read")
        refusal = self._check_grant(call, kind, collection, found, self._ledger.grants.get(digest))
        if refusal is None:
            self._accepted_offline(found, kind)
        return refusal

    def question(self, call: Call, refusal: Reply) -> Call | None:
        """What to ask Qdrant, if it is there, about a caller that was refused here only because nobody knows it.

        `saw` takes the answer. None when no answer would help.
        """
        found = presented(call.metadata)
        is_plain = found is Absent.ANONYMOUS or (isinstance(found, Credential) and found.claims is None)
        if refusal.code is not Code.UNAUTHENTICATED or not is_plain:
            return None
        key = ((API_KEY, found.value),) if isinstance(found, Credential) else ()
        return Call(_QUESTION, b"", key, self._clock.monotonic() + _QUESTION_SECONDS)

    @property
    def _is_open_to_all(self) -> bool:
        """Whether anybody may call: Qdrant lets anybody, or there never was a Qdrant nor a key."""
        if self._ledger.is_open:
            return True
        return not self._ledger.had_upstream and self._full is None and self._read_only is None

    def _check_grant(
        self, call: Call, kind: Kind, collection: str, found: Credential, grant: Grant | None
    ) -> Reply | None:
        if grant is None:
            return refuse(Code.UNAUTHENTICATED, f"{_UNKNOWN}; {_AWAY}")
        if found.claims is not None:
            if not found.claims.is_checkable:
                return refuse(Code.UNAUTHENTICATED, f"{_UNKNOWN}; only Qdrant can check this token, and it is away")
            if found.claims.is_expired(self._clock.wall_ns()):
                return refuse(Code.UNAUTHENTICATED, "ExpiredSignature")
        if found.is_good_everywhere:
            if grant.writes or (grant.reads and kind is Kind.READ):
                return None
            return _may_not("Qdrant was not seen to let this credential write")
        assert found.claims is not None and found.claims.collections is not None
        names = collections_in(call)
        if names is None or not names:
            return _may_not("this token is good for some collections only, and the call is not about one")
        allowed = (grant.read_in if kind is Kind.READ else grant.write_in) & found.claims.collections
        if kind is not Kind.READ and (right := right_to(call.method)) is not Right.DATA:
            allowed &= found.claims.indexable if right is Right.INDEXES else frozenset()
        if {*names, *([collection] if collection else [])} <= allowed:
            return None
        return _may_not("Qdrant was not seen to allow this to the token in this collection")

    def _accepted_offline(self, credential: Credential, kind: Kind) -> None:
        if kind is not Kind.READ:
            self._use_for_replay(credential)

    # --- replay ------------------------------------------------------------------------------------------------------

    def for_replay(self) -> Metadata | None:
        """What replay presents to Qdrant; None = none is known.

        The configured key, else the last one seen good for writes, else one seen reading that may be good for more.
        """
        if self._upstream_key is not None:
            return ((API_KEY, self._upstream_key),)
        if self._ledger.is_open:
            return ()
        credential = self._for_replay
        if credential is None:
            readers = (one.credential for one in reversed(self._known.values()) if one.grant.reads and one.may_write)
            value = next((one.value for one in readers if one.claims is None), None)
            return None if value is None else ((API_KEY, value),)
        if credential.claims is not None and credential.claims.is_expired(self._clock.wall_ns()):
            self._for_replay = None
            return None
        return ((API_KEY, credential.value),)

    def _use_for_replay(self, credential: Credential) -> None:
        """A token tied to collections would have other entries refused: only what may write anywhere will do."""
        if credential.claims is None or credential.claims.is_manager:
            self._for_replay = credential

    # --- the file ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write the ledger whenever it changed, off the event loop, until cancelled."""
        self._has_writer = True
        writing: asyncio.Future[str | None] | None = None
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                writing = asyncio.ensure_future(asyncio.to_thread(self._write, self._ledger.to_json()))
                self._written(await asyncio.shield(writing))
        finally:
            self._has_writer = False
            if writing is not None:
                await asyncio.wait({writing})
            self._written(self._write(self._ledger.to_json()))

    def _touch(self) -> None:
        if self._has_writer:
            self._changed.set()
        else:
            self._written(self._write(self._ledger.to_json()))

    def _write(self, content: dict[str, Any]) -> str | None:
        """Replace the file; what went wrong, if anything did. Runs in a thread when there is a writer."""
        try:
            self._file.save(content)
        except OSError as error:
            return f"cannot write the ledger of credentials: {error.strerror or error}"
        return None

    def _written(self, problem: str | None) -> None:
        if problem != self.problem:
            self.problem = problem
            if problem is not None:
                self._report(problem)

    def _report(self, problem: str) -> None:
        if self._on_problem is not None:
            self._on_problem(problem)

    def _digest_of(self, value: str | None) -> bytes | None:
        return self._file.digest(value) if value else None


def _may_not(why: str) -> Reply:
    return refuse(Code.PERMISSION_DENIED, f"{why}, and Qdrant is away")
