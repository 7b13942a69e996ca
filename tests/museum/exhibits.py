"""The exhibits: for each bug the source text that is replaced, the promise that breaks and the tests that must see it.

The texts are exact and occur once; `test_exhibits.py` says so when the code has moved on.
"""

from __future__ import annotations

from tests.museum.bug import Change, Exhibit
from tests.museum.bug import bug as _bug
from tests.museum.failover import FAILOVER

_POWER = "tests/wal/test_power_loss.py"
_POWER_CUTS = f"{_POWER}::test_every_state_that_a_power_cut_leaves_opens_with_what_was_acknowledged"
_SYSCALLS = "tests/wal/test_syscall_kills.py"
_DAMAGE = "tests/wal/test_damage.py"
_RECORD = "tests/wal/test_record.py"
_RIGHT_CHECKSUMS = f"{_RECORD}::test_every_flipped_bit_shows_even_when_the_checksums_are_made_right_again"
_LOG = "tests/wal/test_log.py"
_RETIRE = "tests/wal/test_retire.py"
_FAULTS = "tests/wal/test_faults.py"
_LATCHED = f"{_FAULTS}::test_after_a_failed_write_or_sync_writers_are_refused_and_readers_served"
_FILES = "tests/wal/test_files.py"
_ROOM = "tests/wal/test_room.py"
_REPLAYER = "tests/replay/test_replayer.py"

_SIGNED_WHEN_WRITTEN = "mac = self.signer.mac(previous_mac, header, prefix, body)"
_SIGNED_WHEN_READ = "self.signer.mac(previous_mac, header, payload)"


def _unsigned(name: str, promise: str, written: str, read: str, *tests: str, seed: bool = True) -> Exhibit:
    """The MAC covers something else, when writing and when reading."""
    more = (Change("server/wal/record.py", _SIGNED_WHEN_READ, f"self.signer.mac({read})"),)
    return _bug(
        name, promise, "wal/record.py", _SIGNED_WHEN_WRITTEN, f"mac = self.signer.mac({written})", *tests,
        seed=seed, more=more,
    )  # fmt: skip


DURABLE = (
    _bug(
        "acknowledged before the write",
        "nothing acknowledged is lost when the process is killed",
        "wal/writer.py",
        "            rewind_to = self._do(run)\n        except OSError",
        "            wanted = run\n"
        "            if isinstance(first, Write):\n"
        "                self._runner.tell([self._outcome(run, None)])\n"
        "                run = ()\n"
        "            rewind_to = self._do(wanted)\n        except OSError",
        f"{_SYSCALLS}::test_nothing_acknowledged_is_lost_when_killed_at_any_call",
    ),
    _bug(
        "acknowledged before the sync",
        "nothing acknowledged is lost",
        "wal/writer.py",
        "        if is_durable:\n            self._sync()\n        else:\n",
        "        if False:\n            self._sync()\n        else:\n",
        _POWER_CUTS,
        seed=True,
    ),
    _bug(
        "the directory is not synced",
        "a name is there after a power cut",
        "wal/files.py",
        "    for directory in dict.fromkeys(path.parent for path in files):\n        disk.sync_directory(directory)\n",
        "",
        _POWER_CUTS,
        seed=True,
    ),
    _bug(
        "renamed before the content is synced",
        "a published file is whole or absent",
        "wal/files.py",
        "            file.append(parts)\n            file.sync()\n        finally:\n",
        "            file.append(parts)\n        finally:\n",
        _POWER_CUTS,
    ),
    _bug(
        "whatever is behind the last good frame is room",
        "a flaw below a point known to be durable is damage",
        "wal/scan.py",
        'if not data.strip(b"\\0"):',
        "if True:",
        f"{_ROOM}::test_a_flaw_before_it_is_judged_as_without_it",
    ),
    _bug(
        "a segment that is over keeps its room",
        "a closed segment ends with its last frame",
        "wal/writer.py",
        "        self._sync()\n        self._take_room_away(self._written.offset)\n        publish(",
        "        self._sync()\n        publish(",
        f"{_ROOM}::test_closed_segments_have_none",
    ),
    _bug(
        "the rest of room that a full disk refused stays",
        "a closed segment ends with its last frame",
        "wal/writer.py",
        "            self._disk.truncate(self._path_of(self._written), end)\n            return\n",
        "            return\n",
        f"{_ROOM}::test_without_space_for_it_the_log_goes_on_until_the_next_segment",
    ),
    _bug(
        "a cut whose sync failed is believed",
        "what an open hands out is on the medium",
        "wal/opening.py",
        "\n    cut_off(disk, last.path, last.size)\n",
        "\n    facts = disk.facts(last.path)\n    if facts is not None and facts.size > last.size:\n"
        "        cut_off(disk, last.path, last.size)\n",
        f"{_ROOM}::test_a_cut_whose_sync_failed_is_made_again_by_the_next_open",
    ),
    _bug(
        "frames are written behind room",
        "frames follow each other without a gap",
        "wal/files.py",
        "        _write_all(self._descriptor, [bytes(length)], self._end)",
        "        self._end = _write_all(self._descriptor, [bytes(length)], self._end)",
        f"{_FILES}::test_room_is_behind_the_end_and_appends_go_into_it",
    ),
    _bug(
        "the cursor is written and not synced",
        "what Qdrant has is not pending again after a power cut",
        "wal/log.py",
        "start, is_durable=True, replayed_seq=seq)",
        "start, is_durable=False, replayed_seq=seq)",
        f"{_LOG}::test_the_cursor_survives_a_kill_before_the_head_knows_of_it",
    ),
    _bug(
        "what a failed sync left is relied upon",
        "what an open hands out is on the medium",
        "wal/opening.py",
        "        _make_durable(disk, found, head)\n",
        "        pass\n",
        f"{_POWER}::test_after_a_failed_sync_nothing_that_was_recovered_is_lost_in_a_later_power_cut",
    ),
    _bug(
        "a failed sync is tried again on the same file",
        "a failed fsync is never retried on that file",
        "wal/writer.py",
        '            raise OSError(errno.EIO, f"sync failed: {failure.strerror}") from failure\n',
        "            self._file.sync()\n",
        _LATCHED,
    ),
    _bug(
        "the log goes on after a failed write",
        "after a failed write or sync the log latches",
        "wal/writer.py",
        'return self._outcome(run, self._latch(f"{failure.strerror or failure}"))',
        'return self._outcome(run, WalLatched(f"{failure.strerror or failure}"))',
        _LATCHED,
    ),
    _bug(
        "a half-written entry stays when the disk is full",
        "the log goes on when there is space again",
        "wal/writer.py",
        "cut_off(self._disk, self._path_of(self._written), self._written.offset)",
        "pass",
        f"{_FAULTS}::test_a_full_disk_refuses_and_the_log_goes_on_when_there_is_space_again",
    ),
    _bug(
        "a segment goes while an entry is on its way into it",
        "nothing acknowledged is lost",
        "wal/log.py",
        "if over and over[-1] is ledger.segments[-1] and not ends_last:",
        "if over and over[-1].codec is self._encoder.tip.codec:",
        f"{_RETIRE}::test_an_entry_on_its_way_into_the_last_known_segment_stays",
        f"{_RETIRE}::test_what_the_replayer_has_not_seen_is_never_retired",
    ),
    _bug(
        "the quarantine keeps the key of before a rotation that failed at its end",
        "a key that is needed stays",
        "wal/log.py",
        "                        self.keys.began(tip.codec.header.key_id)\n",
        "",
        "tests/wal/test_keys.py::test_quarantined_entries_follow_a_rotation_that_did_not_end_well",
    ),
)

ORDER = (
    _bug(
        "segments in the order of random numbers",
        "first in, first out",
        "wal/ledger.py",
        "        for segment in self.segments:\n            if segment.last_seq > after_seq:\n",
        "        for segment in sorted(self.segments, key=lambda each: each.codec.header.salt):\n"
        "            if segment.last_seq > after_seq:\n",
        f"{_LOG}::test_reading_pages_through_cache_and_segments_alike",
        seed=True,
    ),
    _bug(
        "writers are told in another order",
        "order of acknowledgement is order in the log",
        "wal/log.py",
        "            for command in outcome.commands:\n",
        "            for command in reversed(outcome.commands):\n",
        f"{_LOG}::test_order_of_acknowledgement_is_order_in_the_log",
    ),
    _bug(
        "numbers begin anew after a restart",
        "first in, first out, over restarts too",
        "wal/opening.py",
        "seq=found.last_seq,\n        replayed_seq=found.replayed_seq,\n        last_pending_seq",
        "seq=0,\n        replayed_seq=found.replayed_seq,\n        last_pending_seq",
        f"{_LOG}::test_segments_go_when_both_readers_passed_and_the_retention_is_over",
        seed=True,
    ),
    _bug(
        "a failed entry is skipped",
        "no later write overtakes an earlier one",
        "replay/stepper.py",
        "        self.failures += 1\n        self._suspicion.failed",
        "        if self._page:\n            self._done([self._page[0]])\n"
        "        self.failures += 1\n        self._suspicion.failed",
        f"{_REPLAYER}::test_the_same_entry_again_and_never_the_next",
        seed=True,
    ),
    _bug(
        "the breaker counts refusals",
        "a refusal proves that Qdrant is alive",
        "health/breaker.py",
        "        self.success(permit)\n",
        "        self._failures += 1\n",
        "tests/pure/test_breaker.py::test_an_answer_ends_the_row",
        seed=True,
    ),
    _bug(
        "half-open for ever",
        "what is pending is tried again",
        "health/breaker.py",
        "(self._leased_until is not None and now < self._leased_until)",
        "self._leased_until is not None",
        "tests/pure/test_breaker.py::test_a_probe_that_never_reports_does_not_stick_the_breaker",
        seed=True,
    ),
    _bug(
        "collection operations are not logged",
        "what is acknowledged offline reaches Qdrant",
        "rpc.py",
        '    _write(14, COLLECTIONS + "Create"',
        '    _write(0, COLLECTIONS + "Create"',
        "tests/test_generated.py::test_log_kinds_never_change",
        seed=True,
    ),
)

SIGNED = (
    _unsigned(
        "the signature leaves out the metadata",
        "what was changed on disk by anyone else shows",
        "previous_mac, body",
        "previous_mac, payload[fields[5] + fields[6] :]",
        _RIGHT_CHECKSUMS,
    ),
    _unsigned(
        "the signature leaves out the state",
        "a pending entry cannot be made one that Qdrant has",
        "previous_mac, header[:5], header[6:56], prefix, body",
        "previous_mac, header[:5], header[6:56], payload",
        f"{_DAMAGE}::test_edits_with_right_checksums_are_refused_for_their_signature",
    ),
    _unsigned(
        "the signature leaves out who wrote and for whom",
        "an entry stays with its principal",
        "previous_mac, header, prefix[32:], body",
        "previous_mac, header, payload[fields[5] :]",
        _RIGHT_CHECKSUMS,
    ),
    _unsigned(
        "the signature leaves out the lengths",
        "no two contents share an encoding",
        "previous_mac, header[:12], header[20:56], prefix, body",
        "previous_mac, header[:12], header[20:56], payload",
        f"{_RECORD}::test_the_boundaries_between_fields_are_signed",
    ),
    _unsigned(
        "the signature knows no order",
        "swapped, dropped and doubled entries show",
        "header, prefix, body",
        "header, payload",
        f"{_RECORD}::test_the_chain_shows_another_predecessor",
    ),
    _bug(
        "nobody looks at the signature",
        "an entry that fails its MAC is not replayed",
        "wal/record.py",
        "        if not hmac.compare_digest(mac, self.signer.mac(previous_mac, header, payload)):\n",
        "        if not mac:\n",
        f"{_DAMAGE}::test_edits_with_right_checksums_are_refused_for_their_signature",
    ),
    _bug(
        "nobody looks at the signature of a refused entry",
        "what leaves the quarantine was signed",
        "wal/quarantine.py",
        '    if not hmac.compare_digest(mac, Signer(subkey(key, "quarantine", log_id)).mac(signed)):\n',
        "    if not mac:\n",
        "tests/wal/test_quarantine.py::test_what_is_signed_under_another_layout_or_version_is_not_guessed_at",
    ),
    _bug(
        "frames that clients make up look like frames",
        "a frame hidden in a body is not one",
        "wal/record.py",
        "return cls(header, signer, google_crc32c.value(header.salt), signed[-MAC_BYTES:], encoded)",
        "return cls(header, signer, 0, signed[-MAC_BYTES:], encoded)",
        "tests/wal/test_recovery.py::test_a_frame_inside_a_body_that_a_client_made_up_proves_nothing",
    ),
    _bug(
        "the head is not compared with the log",
        "a log that was cut shows",
        "wal/scan.py",
        "        if not kept_promise and not any(",
        "        if False and not any(",
        f"{_DAMAGE}::test_every_truncation",
    ),
    _bug(
        "an older head is accepted",
        "head rollback shows",
        "wal/scan.py",
        "        if frame.head_generation > self._head.generation:\n",
        "        if False:\n",
        f"{_DAMAGE}::test_an_older_head_shows",
    ),
    _bug(
        "a new segment is not in the head",
        "a segment that is taken away shows",
        "wal/writer.py",
        "        self._is_head_due = True\n\n    def _go_on_in",
        "        self._is_head_due = False\n\n    def _go_on_in",
        f"{_DAMAGE}::test_segments_that_are_dropped_exchanged_cut_or_added",
        seed=True,
    ),
)

KEPT = (
    _bug(
        "a lost key is made anew",
        "a key is never silently remade",
        "wal/scan.py",
        '        raise WalKeyMissing(f"{directory} holds a log and no key in {found.keyring.directory}")\n',
        "        return found\n",
        f"{_FILES}::test_a_lost_key_is_never_remade",
        seed=True,
    ),
    _bug(
        "damage is cut like a torn tail",
        "only what nobody can show to have been durable is cut",
        "wal/recovery.py",
        "    return Place.PROVEN if offset < proven_offset else Place.UNPROVEN\n",
        "    return Place.UNPROVEN\n",
        f"{_DAMAGE}::test_every_flipped_bit_of_a_killed_log",
    ),
    _bug(
        "later frames are no proof",
        "damage before an intact frame shows",
        "wal/scan.py",
        "            proven = max(proven, proof_after(self._segment.codec, data, 0, at))\n",
        "",
        f"{_DAMAGE}::test_every_flipped_bit_of_a_killed_log",
    ),
    _bug(
        "a torn tail is cut without a copy",
        "nothing is dropped in silence",
        "wal/opening.py",
        "    publish(disk, path.with_name(name), [disk.read(path, problem.offset, length)])\n",
        "",
        f"{_DAMAGE}::test_every_truncation",
        seed=True,
    ),
    _bug(
        "a segment goes before both readers passed it",
        "a segment goes when both have passed it",
        "wal/log.py",
        "passed = min(applied_seq, self.replayed_seq)",
        "passed = max(applied_seq, self.replayed_seq)",
        f"{_LOG}::test_segments_go_when_both_readers_passed_and_the_retention_is_over",
    ),
    _bug(
        "segments are removed before the head says so",
        "a crash while segments are retired is harmless",
        "wal/writer.py",
        "        self._renew_head(first_segment=first_segment)\n",
        "        for path in paths:\n            self._disk.remove(path)\n"
        "        self._renew_head(first_segment=first_segment)\n",
        f"{_LOG}::test_a_retire_that_a_crash_ended_is_finished_at_the_next_open",
    ),
    _bug(
        "the cursor passes an entry before it is in quarantine",
        "what Qdrant refuses is kept",
        "replay/stepper.py",
        "        if self._refused:\n            await self._log.quarantine(self._refused)\n",
        "        if self._refused:\n            await self._log.mark_replayed(self._unmarked_seq)\n"
        "            self._unmarked = 0\n            await self._log.quarantine(self._refused)\n",
        f"{_REPLAYER}::test_a_refused_entry_is_in_quarantine_before_the_cursor_passes_it",
    ),
    _bug(
        "entries stay in memory",
        "what is pending lives on disk",
        "wal/memory.py",
        "        while self._bytes > self._limit_bytes:\n",
        "        while False:\n",
        f"{_LOG}::test_the_cache_holds_no_more_than_its_limit",
        seed=True,
    ),
    _bug(
        "limits hold at the door only",
        "what may not be written may not be read back",
        "wal/record.py",
        "            or rules.objection(kind, body_bytes, points)\n",
        "",
        f"{_RECORD}::test_limits_are_checked_when_read_back",
    ),
    _bug(
        "anything may be logged",
        "what is not allowed is refused before anything is written",
        "wal/log.py",
        "        if objection:\n            raise EntryRefused(objection)\n",
        "",
        f"{_LOG}::test_what_may_not_be_logged_is_refused_before_anything_is_written",
        seed=True,
    ),
    _bug(
        "two processes share a directory",
        "one process holds a log",
        "wal/files.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        f"{_FILES}::test_a_second_process_leaves_at_once_and_changes_nothing",
    ),
    _bug(
        "files have the mode that the umask leaves",
        "files are 0600 whatever the umask",
        "wal/files.py",
        "            os.fchmod(descriptor, FILE_MODE)\n        except OSError:",
        "            pass\n        except OSError:",
        f"{_FILES}::test_every_file_is_0600_and_every_directory_0700_whatever_the_umask",
    ),
    _bug(
        "a key that others can read is used",
        "a key that others may touch is refused",
        "wal/keyring.py",
        "    if facts.mode & 0o077:\n",
        "    if False:\n",
        f"{_FILES}::test_a_key_that_others_may_touch_is_refused",
    ),
)

EXHIBITS = (*DURABLE, *ORDER, *SIGNED, *KEPT, *FAILOVER)
