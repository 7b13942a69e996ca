"""SIGKILL at every system call on files, by `strace -e inject`, of three lives of a log on a real disk.

A counting run per thread lists the calls of a life; then the life is lived once for each of them and killed when it
enters that call. Whatever is found afterwards must be what was acknowledged and at most what had been asked for:

    birth      a new log, entries of both kinds, concurrent writers, cursors, heads
    upkeep     rolls, quarantine, release, retire, close, `wal compact`, another life
    recovery   a torn tail, retired segments and half-made files are opened, read, appended to, closed and opened again

The kill comes before the call is carried out, so that "after the call" is the next call of the same thread. That the
writer has synced and nobody has been told is the point before its message to the event loop (`sendto`).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

import pytest

from server.errors import UnderstudyError
from server.wal.ballast import Space
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.opening import open_directory
from server.wal.quarantine import Quarantine
from server.wal.reader import Stretch, read_entries
from server.wal.record import SEGMENT_HEADER_BYTES
from server.wal.scan import survey
from tests.faults.clock import ManualClock
from tests.processes import send
from tests.wal.nursery import Nursery
from tests.wal.support import PENDING, RULES, Entropy
from tests.wal.syscall_victim import MAIN, WORKLOADS

VICTIM = "tests.wal.syscall_victim"
AT_ONCE = 2
# Calls that take a file's name or descriptor, and the one by which the writer tells the event loop what it has done.
CALLS = "%file,%desc,sendto"
TOLD, WRITER = "sendto", "understudy-wal"
# Before the writer dies at one of these, the event loop has had the time to acknowledge whatever it was told.
WRITES, HELD = ("write", "writev", "pwrite64", "pwritev"), f"inject={TOLD}:delay_exit=10000"
_CALL = re.compile(r"^(\w+)\((.*)\) += .*$")
_PLACE = re.compile(r'[<"](/[^>"]*)[>"]')
# Loading a module, and what is no file.
_FOREIGN = re.compile(r"\.pyc?\b|__pycache__|<(pipe|socket|anon_inode|UNIX|TCP):|\"/(proc|sys)/")
# A process that is just being forked holds what this one holds, locks of directories too.
_FORKING = threading.Lock()


@dataclass(frozen=True)
class Call:
    """The `number`-th call of that name in a thread, and the file it is about."""

    thread: str
    name: str
    number: int
    place: str


@dataclass
class Promised:
    """What a life asked for and what it was promised."""

    log_id: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    acknowledged: int = 0
    cursor_asked: int = 0
    cursor: int = 0
    quarantine_asked: set[int] = field(default_factory=set)
    quarantined: set[int] = field(default_factory=set)
    release_asked: set[int] = field(default_factory=set)
    released: set[int] = field(default_factory=set)
    retire_asked: int = 0
    first_seq: int = 1

    def hear(self, words: Sequence[str]) -> None:
        match words:
            case ["id", log_id]:
                assert self.log_id in ("", log_id), "the log has become another one"
                self.log_id = log_id
            case ["ask-entry", state, body]:
                self.asked.append((state, body))
            case ["ok-entry", seq]:
                assert int(seq) == self.acknowledged + 1, "acknowledged out of order"
                self.acknowledged = int(seq)
            case ["ask-cursor", seq]:
                self.cursor_asked = max(self.cursor_asked, int(seq))
            case ["ok-cursor", seq]:
                self.cursor = max(self.cursor, int(seq))
            case ["ask-quarantine", seq]:
                self.quarantine_asked.add(int(seq))
            case ["ok-quarantine", seq]:
                self.quarantined.add(int(seq))
            case ["ask-release", seq]:
                self.release_asked.add(int(seq))
            case ["ok-release", seq]:
                self.released.add(int(seq))
            case ["ask-retire", seq]:
                self.retire_asked = max(self.retire_asked, int(seq))
            case ["ok-retire", first_seq]:
                self.first_seq = max(self.first_seq, int(first_seq))
            case _:
                pass

    def check(self, directory: Path) -> None:
        """Open what is left, twice, and compare."""
        with _FORKING:
            self._compare(directory, "first")
            self._compare(directory, "second")
        found = survey(RealDisk(), directory, RULES, deep=True)
        assert not found.problems
        assert not found.temporaries
        assert not found.retired
        for path in (directory, *directory.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), f"{path} has mode {mode:o}"

    def _compare(self, directory: Path, name: str) -> None:
        disk = RealDisk()
        space = Space(disk, directory, WalLimits())
        opened = open_directory(disk, directory, RULES, ManualClock(), Entropy(name), space=space)
        opened.file.close()
        opened.lock.release()
        found = opened.survey
        stretches = [Stretch(each.path, each.codec, SEGMENT_HEADER_BYTES, each.size) for each in found.segments]
        records = read_entries(disk, stretches, RULES, after_seq=0, limit_entries=10**9, limit_bytes=10**9)
        first_seq, last_seq = found.segments[0].first_seq, found.last_seq
        assert self.log_id in ("", opened.head.log_id.hex()), "it is another log"
        # Recovered = acknowledged, plus at most what was in flight, in the order in which it was asked for.
        assert [record.seq for record in records] == list(range(first_seq, last_seq + 1))
        assert self.acknowledged <= last_seq <= len(self.asked), "acknowledged entries are gone, or others came"
        there = [(record.state.name, record.body.decode()) for record in records]
        assert there == self.asked[first_seq - 1 : last_seq]
        # Only what was passed may go, and what went stays away.
        assert self.first_seq <= first_seq <= self.retire_asked + 1
        waiting = {record.seq for record in records if record.state is PENDING and record.seq > found.replayed_seq}
        asked = {seq for seq in range(1, last_seq + 1) if self.asked[seq - 1][0] == PENDING.name}
        assert {seq for seq in asked if seq > self.cursor_asked} <= waiting, "pending entries are passed over"
        assert not [seq for seq in waiting if seq <= self.cursor], "the cursor went back"
        assert len(waiting) == len(found.pending)
        items = Quarantine(disk, directory, found.keyring, b"", b"").items()
        assert not [item for item in items if item.flaw]
        kept = {item.seq for item in items}
        assert self.quarantined - self.release_asked <= kept <= self.quarantine_asked - self.released


class Runner:
    """Lives and deaths in one nursery."""

    def __init__(
        self, name: str, nursery: Nursery, folder: Path, ruin: Path, *, workload: str, scale: int, before: Promised
    ) -> None:
        self._name = name
        self._nursery = nursery
        self._workload = workload
        self._scale = scale
        self._folder = folder
        self._ruin = ruin
        self._before = before
        self._lives = 0

    def count(self, thread: str) -> tuple[list[Call], set[str]]:
        """The calls of one thread, and the names of all threads."""
        threads: set[str] = set()
        directory, promised, status, trace = self._live(thread, ["-y", "-e", f"trace={CALLS}"], threads)
        assert status == 0, trace
        promised.check(directory)
        calls, seen = [], Counter[str]()
        for line in trace:
            if (match := _CALL.match(line)) is None:
                continue
            name = match[1]
            seen[name] += 1
            if thread.startswith(WRITER) if name == TOLD else not _FOREIGN.search(line):
                calls.append(Call(thread, name, seen[name], self._place(line, directory)))
        return calls, threads

    def kill(self, call: Call) -> None:
        """One life that ends at this call; then compare."""
        inject = f"inject={call.name}:signal=KILL:when={call.number}"
        options = ["-y", "-e", f"trace={call.name}", "-e", inject]
        if call.name in WRITES and call.thread.startswith(WRITER):
            options += ["-e", HELD]
        directory, promised, status, trace = self._live(call.thread, options, set())
        assert status == -signal.SIGKILL, f"it was not killed: exit code {status}"
        last = [line for line in trace if _CALL.match(line)][-1]
        assert self._place(last, directory) == call.place, f"it was killed at another call: {last}"
        promised.check(directory)
        shutil.rmtree(directory.parent)

    def _place(self, line: str, directory: Path) -> str:
        match = _CALL.match(line)
        assert match is not None, line
        return " ".join(_PLACE.findall(match[2])).replace(str(directory.parent), "")

    def _live(self, thread: str, options: list[str], threads: set[str]) -> tuple[Path, Promised, int, list[str]]:
        self._lives += 1
        home = self._folder / f"{self._name}-{self._lives}"
        directory = home / "wal"
        home.mkdir(parents=True)
        promised = Promised()
        if self._workload == "recovery":
            shutil.copytree(self._ruin, directory)
            promised = Promised(
                log_id=self._before.log_id,
                asked=list(self._before.asked),
                acknowledged=self._before.acknowledged,
                cursor_asked=self._before.cursor_asked,
                cursor=self._before.cursor,
                quarantine_asked=set(self._before.quarantine_asked),
                quarantined=set(self._before.quarantined),
                retire_asked=self._before.retire_asked,
                first_seq=self._before.first_seq,
            )
        output = self._folder / f"{self._name}-{self._lives}.trace"
        self._nursery.bear(self._workload, self._scale, thread, directory)
        tracer, pid, gate = None, 0, ""
        for words in self._nursery.lines():
            match words:
                case ["pid", number]:
                    pid = int(number)
                case ["gate", tid]:
                    gate = tid
                case ["stopped", _]:
                    tracer = _attach(gate, [*options, "-o", str(output)])
                    send(pid, signal.SIGCONT)
                case ["thread", name]:
                    threads.add(name)
                case ["gone", _, code]:
                    status = int(code)
                case _:
                    promised.hear(words)
        assert tracer is not None, f"there is no thread {thread}"
        with tracer:
            tracer.wait(60)
        trace = output.read_text().splitlines()
        output.unlink()
        return directory, promised, status, trace


def _attach(tid: str, options: list[str]) -> subprocess.Popen[str]:
    """A tracer of one thread, which is stopped; returns when the thread is held."""
    command = ["strace", "-s", "0", *options, "-p", tid]
    with _FORKING:
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if "attached" not in line:
        send(int(tid), signal.SIGKILL)
        raise AssertionError(f"strace cannot trace: {line}")
    return tracer


def _why_not() -> str:
    """Why this machine cannot run these tests; empty when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (Debian, Ubuntu: apt install strace)"
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            command = ["strace", "-e", "inject=nanosleep:signal=KILL", "-p", str(sleeper.pid)]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
                assert tracer.stderr is not None
                said = tracer.stderr.readline()
                tracer.terminate()
        finally:
            sleeper.kill()
    return "" if "attached" in said else f"strace may not trace here: {said.strip()} (containers: --cap-add SYS_PTRACE)"


@pytest.fixture(scope="module")
def strace() -> None:
    """Skip where it cannot work; in CI that is a failure."""
    if why := _why_not():
        if os.environ.get("CI"):
            pytest.fail(f"the kills at system calls did not run: {why}")
        pytest.skip(why)


@pytest.fixture(scope="module")
def nurseries(tmp_path_factory: pytest.TempPathFactory, strace: None) -> Iterator[list[Nursery]]:
    """As many as there may be victims at once."""
    with Nursery(VICTIM) as first, Nursery(VICTIM) as second:
        yield [first, second]


def _kill_everywhere(nurseries: list[Nursery], workload: str, scale: int, folder: Path) -> Counter[str]:
    """Kill at every call; returns how often at each kind."""
    ruin = folder / "ruin"
    before = Promised()
    if workload == "recovery":
        nurseries[0].bear("ruin", scale, "none", ruin)
        for words in nurseries[0].lines():
            before.hear(words)
    runners: SimpleQueue[Runner] = SimpleQueue()
    for number, nursery in enumerate(nurseries):
        runners.put(Runner(f"life-{number}", nursery, folder, ruin, workload=workload, scale=scale, before=before))
    first = runners.get()
    calls, threads = first.count(MAIN)
    for thread in sorted(threads):
        calls += first.count(thread)[0]
    runners.put(first)

    def kill(call: Call) -> str:
        runner = runners.get()
        try:
            runner.kill(call)
        except (AssertionError, UnderstudyError) as error:
            return f"killed in thread {call.thread} at {call.name} #{call.number} {call.place}: {error}"
        finally:
            runners.put(runner)
        return ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        bad = [text for text in pool.map(kill, calls) if text]
    assert not bad, f"{len(bad)} of {len(calls)} kills: " + "\n".join(bad[:5])
    return Counter(call.name for call in calls)


@pytest.fixture(scope="module")
def say(record_testsuite_property: Callable[[str, object], None]) -> Iterator[Callable[[str, Counter[str]], None]]:
    """Figures for whoever runs the tests with `-s`, and for reports; at the end the sum."""
    total: Counter[str] = Counter()

    def told(workload: str, killed: Counter[str]) -> None:
        text = f"{killed.total()} kills: " + ", ".join(f"{name} {count}" for name, count in killed.most_common())
        print(f"\n{workload}: {text}")
        record_testsuite_property(f"syscall kills, {workload}", text)
        total.update(killed)

    yield told
    print(f"\nall: {total.total()} kills at {len(total)} kinds of calls")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory where there is one: what a killed process leaves is in the page cache on any medium.

    What the medium itself may lose is the subject of test_power_loss.py.
    """
    shared = Path("/dev/shm")
    with TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as made:
        yield Path(made)


# At least so many of the calls of each life; together more than 500.
KILLS_MIN = {"birth": 100, "upkeep": 400, "recovery": 250}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_nothing_acknowledged_is_lost_when_killed_at_any_call(
    nurseries: list[Nursery], workload: str, memory: Path, say: Callable[[str, Counter[str]], None]
) -> None:
    killed = _kill_everywhere(nurseries, workload, 1, memory)
    say(workload, killed)
    assert killed.total() >= KILLS_MIN[workload]


@pytest.mark.soak
@pytest.mark.parametrize("workload", WORKLOADS)
def test_nothing_acknowledged_is_lost_when_a_longer_life_is_killed_at_any_call(
    nurseries: list[Nursery], workload: str, tmp_path: Path, say: Callable[[str, Counter[str]], None]
) -> None:
    """The same on the disk that the temporary directory is on."""
    killed = _kill_everywhere(nurseries, workload, 4, tmp_path)
    say(workload, killed)
    assert killed.total() > KILLS_MIN[workload]
