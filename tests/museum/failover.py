"""Bugs in failover, replay and mirroring, which the simulation must find within its usual seeds."""

from __future__ import annotations

from tests.museum.bug import Change, Exhibit, bug

_FOUND = "tests/simulation/test_found.py"
_CONFLICTS = "tests/replay/test_conflicts.py"
_VERDICTS = "tests/replay/test_verdicts.py"
_SIMULATION = "tests/simulation/test_simulation.py::test_the_promises_hold"
_FOREIGN = "tests/simulation/test_simulation.py::test_the_promises_hold_when_others_write"
_FORGETS = "tests/simulation/test_simulation.py::test_the_promises_hold_when_qdrant_forgets"
_FORMER = "tests/replica/test_former.py"
_WIRE = "tests/replica/test_wire.py"
_LOOKING_BACK = "tests/replay/test_looking_back.py"
_CUTOVER = "tests/router/test_cutover.py"
_MONITOR = "tests/proxy/test_upstream_monitor.py"
_GRACE = "tests/replay/test_grace.py"
_GRACE_NOTES = "tests/replay/test_grace_notes.py::test_a_replica_that_begins_anew_is_not_looked_at_further_back"
_HISTORIES = "tests/simulation/test_histories.py::test_every_history_has_an_order"


def _bug(
    name: str,
    promise: str,
    file: str,
    old: str,
    new: str,
    *tests: str,
    seed: bool = False,
    more: tuple[Change, ...] = (),
) -> Exhibit:
    return bug(name, promise, file, old, new, *(tests or (_SIMULATION,)), seed=seed, more=more)


ROUTING = (
    _bug(
        "writes during a drain go straight to Qdrant",
        "no later write overtakes an earlier one",
        "router.py",
        "            if not self._mode.is_remote:\n                reply = await self._write_local",
        "            if not self._mode.is_remote and not self._mode.is_draining:\n"
        "                reply = await self._write_local",
        seed=True,
    ),
    _bug(
        "reads during a drain go to Qdrant",
        "read your writes",
        "router.py",
        "        if self._mode.is_remote and not is_explained:\n",
        "        if (self._mode.is_remote or self._mode.is_draining) and not is_explained:\n",
        seed=True,
    ),
    _bug(
        "the replica answers before it has what was acknowledged",
        "read your writes",
        "router.py",
        "        await self._deadlines.caught_up(call, self._mirror.caught_up(acknowledged_seq))\n",
        "",
        _FOUND,
    ),
    _bug(
        "a write is checked before those before it are applied",
        "what Qdrant would take is taken",
        "router.py",
        "            await self._mirror.caught_up(max(self._synced_seq, self._unseen_seq))\n",
        "",
        _FOUND,
    ),
    _bug(
        "acknowledged before it is logged",
        "nothing acknowledged is lost",
        "router.py",
        "                seqs = [await self._log_pending(call, entry, sent) for entry in entries]\n",
        "                asyncio.ensure_future(self._log_pending(call, entries[0], sent))\n"
        "                return self._from_local(call, Reply(local_answers.plain_success(row, request, 0)))\n",
        seed=True,
    ),
    _bug(
        "a write of unknown outcome is taken for done",
        "nothing acknowledged is lost",
        "router.py",
        "            return None, reply.maybe_applied\n",
        "            return (Reply() if reply.maybe_applied else None), False\n",
    ),
    _bug(
        "a broken connection is the client's error",
        "Qdrant going away is no error for the client",
        "router.py",
        "            return None, reply.maybe_applied\n",
        '            return refuse(Code.RESOURCE_EXHAUSTED, "Qdrant is away"), False\n',
    ),
    _bug(
        "local reads do not wait for writes of unknown outcome",
        "one order explains what all clients see",
        "router.py",
        "        is_settled = await self._writes_settled(call) and not self._repairs.has_untold_doubts\n",
        "        is_settled = True\n",
        _FOUND,
    ),
    _bug(
        "a client that hangs up stops its write halfway",
        "the replica is never silently different",
        "router.py",
        "        return await asyncio.shield(task)\n",
        "        return await task\n",
    ),
    _bug(
        "writes to one point are not ordered",
        "both sides end the same",
        "conflicts.py",
        "        if not stay.has_turn:\n            stay.turn",
        "        if False:\n            stay.turn",
    ),
    _bug(
        "a write by a filter does not wait for others, nor they for it",
        "one order explains what all clients see",
        "conflicts.py",
        '    if selector.WhichOneof("points_selector_one_of") != "points":\n        return None\n',
        '    if selector.WhichOneof("points_selector_one_of") != "points":\n        return frozenset()\n',
        _HISTORIES,
    ),
    _bug(
        "local reads wait neither for the replica nor for writes of unknown outcome",
        "one order explains what all clients see",
        "router.py",
        "        is_settled = await self._writes_settled(call) and not self._repairs.has_untold_doubts\n"
        '        with self._telemetry.span("replica.read", method=call.method):\n'
        "            reply = await self._deadlines.within(call, self._ask_replica(call, self._log.last_seq))\n",
        "        is_settled = True\n"
        '        with self._telemetry.span("replica.read", method=call.method):\n'
        "            reply = await self._deadlines.within(call, self._ask_replica(call, 0))\n",
        _HISTORIES,
    ),
)

DOUBTS = (
    _bug(
        "no marker of doubt",
        "the replica is never silently different",
        "repairs.py",
        "            self._write_durably(self._marker)\n",
        "            pass\n",
    ),
    _bug(
        "a write that may be at Qdrant and is not in the log is no doubt",
        "the replica is never silently different",
        "router.py",
        "if sent.leaves_doubt:",
        "if False:",
        _SIMULATION,
        "tests/router/test_router.py::test_a_write_that_qdrant_may_have_and_the_log_has_not_is_a_doubt",
    ),
    _bug(
        "whatever is not OK proves that Qdrant did nothing",
        "the replica is never silently different",
        "router.py",
        "        elif not proves_refusal(call.method, reply):\n",
        "        elif False:\n",
        "tests/router/test_router.py::test_an_answer_that_proves_no_refusal_leaves_a_doubt",
    ),
    _bug(
        "each doubt is a copy of its own",
        "Qdrant is not flooded",
        "replica/hydrate.py",
        "        self._doubt.set()\n",
        "        self._work.set()\n",
        "tests/replica/test_hydrate.py::test_doubts_that_do_not_end_cause_no_storm_of_copies",
    ),
    _bug(
        "a batch with filters is sent twice as a whole",
        "no acknowledged write has another effect than it had",
        "entries.py",
        "if len(parts) > 1 and any(",
        "if len(parts) < 1 and any(",
        "tests/replay/test_batches.py",
    ),
    _bug(
        "what a copy that is not whole refuses is no doubt",
        "the replica is never silently different",
        "router.py",
        "sent.is_refused = is_whole and prepared.code == Code.NOT_FOUND",
        "sent.is_refused = prepared.code == Code.NOT_FOUND",
        "tests/router/test_router.py::test_what_the_whole_replica_does_not_find_qdrant_did_not_do",
    ),
    _bug(
        "a deletion that others saw and that the log lacks counts as lost by Qdrant",
        "read your writes",
        "repairs.py",
        "self._deletions.under_way(loses_points_of) if loses_points_of else nullcontext()",
        "nullcontext()",
        "tests/router/test_deletions.py",
    ),
    _bug(
        "a doubt goes under in the word that all is copied",
        "the replica is never silently different",
        "replica/copying.py",
        "        if self._.is_doubted(self._name):\n            # The doubt came",
        "        if False:\n            # The doubt came",
        "tests/replica/test_hydrate.py::test_a_doubt_outlasts_the_word_that_all_is_copied",
    ),
    _bug(
        "the copy under way forgets a new doubt",
        "the replica is never silently different",
        "replica/hydrate.py",
        "        self._doubted.add(collection)\n",
        "",
        "tests/replica/test_hydrate.py::test_a_doubt_outlasts_the_word_that_all_is_copied",
    ),
    _bug(
        "pages overwrite what was written meanwhile",
        "concurrent writes win over the page",
        "replica/pages.py",
        "after=page.next_offset, since_seq=since\n",
        "after=page.next_offset, since_seq=self._.log.last_seq\n",
        "tests/replica/test_hydrate.py::test_changes_to_points_that_are_not_here_yet",
    ),
    _bug(
        "a write by filter is applied over a page that is newer than it",
        "the replica is never silently different",
        "replica/pages.py",
        "        request.read_seq = self._.log.last_seq\n",
        "",
        "tests/replica/test_hydrate_races.py::test_a_write_by_filter_is_not_applied_over_a_page_that_is_newer",
    ),
    _bug(
        "a copy ends well although the replica doubted it meanwhile",
        "the replica is never silently different",
        "replica/imports.py",
        "    if collection is None or collection.doubt_number != request.doubt_number:\n",
        "    if collection is None:\n",
        "tests/replica/test_hydrate_races.py::test_a_doubt_while_nothing_is_saved",
    ),
    _bug(
        "the mirror skips what Qdrant has acknowledged",
        "the replica knows what was written online",
        "mirror.py",
        "entries=map(_log_entry, records)",
        "entries=[_log_entry(each) for each in records if each.state is EntryState.PENDING]",
        more=(
            Change(
                "server/mirror.py",
                "self.applied_seq = max(self.applied_seq, answer.applied_seq)",
                "self.applied_seq = max(self.applied_seq, records[-1].seq)",
            ),
        ),
    ),
)

REPLAY = (
    _bug(
        "the cursor moves before the answer",
        "nothing acknowledged is lost",
        "replay/stepper.py",
        "        self._page.extend(unpack(record, self._kinds) for record in records)\n",
        "        self._page.extend(unpack(record, self._kinds) for record in records)\n"
        "        if records:\n            await self._log.mark_replayed(records[-1].seq)\n",
        _FOUND,
        seed=True,
    ),
    _bug(
        "replay goes on past an entry that failed",
        "pending writes reach Qdrant in the order of the log",
        "replay/stepper.py",
        "is to be seen.\n            self._page.clear()",
        "is to be seen.\n            self._page.rotate(-1)",
        seed=True,
    ),
    _bug(
        "a broken connection counts as done",
        "nothing acknowledged is lost",
        "replay/delivery.py",
        "return _unanswered(failure, Code.UNAVAILABLE)",
        "return Answer(Outcome.DONE, Code.OK, str(failure), answered=False, unsent=not failure.maybe_applied)",
        "tests/replay/test_replayer.py",
        _SIMULATION,
    ),
    _bug(
        "not now counts as never",
        "only what Qdrant refuses is in quarantine",
        "replay/judge.py",
        '(Code.RESOURCE_EXHAUSTED, Outcome.TRANSIENT, "rate limit or disk full")',
        '(Code.RESOURCE_EXHAUSTED, Outcome.PERMANENT, "rate limit or disk full")',
        "tests/replay/test_replayer.py",
        _SIMULATION,
    ),
    _bug(
        "a limit of the strict mode is passed over",
        "what Qdrant would refuse is refused offline, not acknowledged and lost to the quarantine",
        "replica/strict.py",
        '        self.at_most(len(request.points), "upsert_max_batchsize", "upsert limit")\n',
        "",
        "tests/differential/test_strict.py::test_the_replica_refuses_what_qdrant_refuses",
        "tests/replica/test_strict_writes.py::test_what_is_asked_offline_is_refused_before_it_is_logged",
    ),
    _bug(
        "what follows a refused write is sent",
        "later entries that touch a quarantined point follow it",
        "replay/stepper.py",
        "        unpack(record, self._kinds).taint(self._causality, code, details)\n",
        "",
    ),
    _bug(
        "what only follows a refused write keeps nothing back",
        "later entries that touch a quarantined point follow it",
        "replay/stepper.py",
        "        unpack(record, self._kinds).taint(self._causality, code, details)\n",
        "        for blame in delivered.blames:\n"
        "            self._causality.refuse(blame.operation, parcel.seq, whole_collection=blame.whole_collection)\n",
        f"{_VERDICTS}::test_writes_by_an_alias_follow_a_switch_that_follows",
        f"{_VERDICTS}::test_restarts_change_no_verdict",
    ),
    _bug(
        "entries that may not repeat share a cursor",
        "sending an entry again changes nothing",
        "replay/stepper.py",
        "        if self._unmarked.bars([parcel]):\n            # What was sent",
        "        if False:\n            # What was sent",
        _FOUND,
        more=(
            Change(
                "server/replay/stepper.py",
                "        if delivered.applied and not shares_a_record(parcel):\n",
                "        if False:\n",
            ),
        ),
    ),
    _bug(
        "what is refused is dropped",
        "nothing is dropped in silence",
        "replay/stepper.py",
        "        self._refused.append(Refused(record, int(code), details))\n",
        "",
        seed=True,
    ),
    _bug(
        "the open breaker stays open",
        "everything drains in the end",
        "health/breaker.py",
        "if self._phase is Phase.OPEN and now >= self._opened_at + self._open_seconds:",
        "if self._phase is Phase.OPEN and now >= self._opened_at + 100 * self._open_seconds:",
        seed=True,
    ),
    _bug(
        "a drain is not asked for",
        "everything drains in the end",
        "app.py",
        "        if change.after is State.DRAINING:\n            replayer.request_sync(change.reason)\n",
        "",
        seed=True,
    ),
)

OTHERS = (
    _bug(
        "entries that nobody has looked at go along with those that were",
        "nothing is dropped in silence",
        "replay/stepper.py",
        "            parcels = takewhile(lambda parcel: parcel.is_examined, parcels)\n",
        "            pass\n",
        f"{_CONFLICTS}::test_what_goes_as_one_was_looked_at_whole",
        _FOREIGN,
    ),
    _bug(
        "another attempt forgets what a look under way has seen",
        "nothing is dropped in silence",
        "replay/examining.py",
        "        self._is_outdated = True\n",
        "        self._fates.clear()\n        self._looked_until.clear()\n",
        f"{_CONFLICTS}::test_another_attempt_during_a_look_forgets_nothing_of_it",
    ),
    _bug(
        "what others wrote is overwritten before it is kept",
        "nothing is dropped in silence",
        "replay/examining.py",
        "            await self._keep(self._rows(look, changed, stretch))\n",
        "            pass\n",
        f"{_CONFLICTS}::test_nothing_is_overwritten_that_could_not_be_kept",
    ),
    _bug(
        "a drain takes its own work for that of others",
        "nothing acknowledged is lost",
        "replica/baselines.py",
        "                settle(tx, collection.cid, settled, request.looker)\n",
        "                pass\n",
        f"{_CONFLICTS}::test_a_drain_that_broke_off_sees_its_own_work_and_knows_it",
    ),
    _bug(
        "others' changes between two attempts of a drain are not seen",
        "nothing is dropped in silence",
        "replica/baselines.py",
        "(found.state is State.OPEN or is_again)",
        "found.state is State.OPEN",
        f"{_CONFLICTS}::test_what_others_do_when_a_drain_broke_off_before_the_write_is_seen",
    ),
    _bug(
        "what a write of ours did between two attempts is taken for others' work",
        "nothing acknowledged is lost",
        "replay/delivery.py",
        "sent_before, self.sent_seq = self.sent_seq, max(self.sent_seq, seq)",
        "sent_before = self.sent_seq",
        f"{_CONFLICTS}::test_a_write_that_may_have_left_is_not_looked_at_again",
    ),
    _bug(
        "points are looked at before what comes ahead of them is done",
        "nothing acknowledged is lost",
        "replay/contested.py",
        "if points >= limit_points or not is_by_points(parcel):",
        "if points >= limit_points:",
        f"{_CONFLICTS}::test_a_collection_made_anew_has_nobody_elses_points",
    ),
    _bug(
        "what others win is left out, and the replica keeps ours",
        "both sides end the same",
        "replica/baselines.py",
        "            if request.fate == control.FATE_REMOTE:\n",
        "            if False:\n",
        f"{_CONFLICTS}::test_remote_wins",
    ),
)

CUTOVER = (
    _bug(
        "REMOTE although something is pending",
        "REMOTE means nothing is pending",
        "mode.py",
        "        elif not pending and not must_look:\n",
        "        elif verdict.up:\n",
        seed=True,
    ),
    _bug(
        "a write of unknown outcome leaves the state alone",
        "read your writes",
        "mode.py",
        '        self._step("a write went to the log", Event.WRITE_LOGGED)\n',
        "        return\n",
    ),
    _bug(
        "who waited for the end of a drain begins another one",
        "a drain ends once",
        "router.py",
        "            if prepared is None or (self._mode.is_remote and not sent.was_tried):\n",
        "            if prepared is None:\n",
        f"{_CUTOVER}::test_who_waited_at_the_gate_goes_to_qdrant_when_the_drain_is_over",
    ),
)

GRACE = (
    _bug(
        "a connection that was lost is no reason to look",
        "what Qdrant acknowledged and lost is sent again",
        "app.py",
        "            monitor.on_connection_lost = self._window.connection_lost\n",
        "",
        _FORGETS,
    ),
    _bug(
        "a connection that was lost and is there again goes unnoticed",
        "what Qdrant acknowledged and lost is sent again",
        "upstream.py",
        "            if last is Connectivity.READY and self.connectivity() is last:\n",
        "            if False:\n",
        f"{_MONITOR}::test_a_connection_that_is_lost_and_replaced_while_the_loop_is_busy_is_told",
    ),
    _bug(
        "no look at what Qdrant has lost",
        "what Qdrant acknowledged and lost is sent again",
        "replay/stepper.py",
        "        if self._look_back is not None and self._look_back.is_due:\n"
        "            return await self._look(self._look_back)\n",
        "        if self._look_back is not None:\n            self._look_back._window.is_due = False\n",
        _FORGETS,
    ),
    _bug(
        "what is pending is sent with what was lost",
        "pending writes reach Qdrant in the order of the log",
        "replica/former.py",
        "    return _States(before, lacks or Former(True, True, here))\n",
        "    return _States(before, Former(True, True, here))\n",
        _FORMER,
    ),
    _bug(
        "what is in quarantine is sent with what was lost",
        "only what Qdrant has lost is sent again",
        "replay/looking_back.py",
        "                refused=withheld.among(listed.ids, look.window.since_seq),\n",
        "",
        f"{_LOOKING_BACK}::test_a_filter_in_quarantine_is_not_carried_out_point_by_point",
    ),
    _bug(
        "an alias and its collection are two names",
        "nothing acknowledged is lost",
        "replay/bisect.py",
        "    return operation.behind or name\n",
        "    return name\n",
        f"{_CONFLICTS}::test_an_alias_and_its_collection_are_one_place",
    ),
    _bug(
        "what somebody else wrote counts as lost",
        "only what Qdrant has lost is sent again",
        "replica/former.py",
        "    return Judged(Finding.FOREIGN, wanted)\n",
        "    return Judged(Finding.LOST, wanted)\n",
        _FORMER,
    ),
    _bug(
        "a deletion leaves no trace of what was there",
        "what Qdrant acknowledged and lost is sent again",
        "replica/applying.py",
        "        self._keep(collection, keys, is_whole=names_them)\n",
        "",
        _FORMER,
    ),
    _bug(
        "what was sent again is not looked after",
        "what Qdrant acknowledged and lost is sent again",
        "replay/grace.py",
        "        if has_sent:\n            self._note(self._since_seq)\n",
        "",
        _GRACE,
    ),
    _bug(
        "with a new store the look at what Qdrant lost goes through the whole log",
        "what others wrote is left alone",
        "replay/grace_keeping.py",
        "            window.begin(notes.past_seq or 0)\n",
        "            window.begin(0)\n",
        _GRACE_NOTES,
    ),
)

WIRE = (
    _bug(
        "what a caller gives up goes on in the replica",
        "client cancellations propagate",
        "replica/asking.py",
        "            self._frames.put(wire_pb2.Question(number=number, given_up=True).SerializeToString())\n",
        "",
        _WIRE,
    ),
    _bug(
        "calls wait for a replica that is gone",
        "no client error when the replica dies",
        "replica/asking.py",
        "        for waiting in self._waiting.values():\n            if not waiting.done():\n",
        "        for waiting in self._waiting.values():\n            if False:\n",
        _WIRE,
    ),
    _bug(
        "a frame that came in pieces is handed on too soon",
        "an answer is the one to its question",
        "replica/wire.py",
        "                if len(view) < middle + body_bytes:\n",
        "                if len(view) < middle:\n",
        _WIRE,
    ),
)

LOG = (
    _bug(
        "the log is not synced under load",
        "nothing acknowledged is lost when the power goes",
        "wal/writer.py",
        "            self._sync_file()\n\n    def _sync_file(",
        "            self._synced = self._written\n            self._unsynced.clear()\n\n    def _sync_file(",
    ),
)

FAILOVER = ROUTING + DOUBTS + REPLAY + OTHERS + CUTOVER + GRACE + WIRE + LOG
