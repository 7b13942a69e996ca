"""One tree of errors. Each carries a hint: what the operator does next.

Promises: every error that Understudy raises across a module border is an `UnderstudyError`; its text says what happened
and where. Does not promise: gRPC status codes, those are chosen at the edge (`edge.py`) from the table `STATUS_OF`.
"""

from __future__ import annotations


class UnderstudyError(Exception):
    """Base of all. `hint` is one sentence for the operator; `exit_code` is what a command exits with."""

    exit_code = 1
    hint = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint

    def __str__(self) -> str:
        """The message, then the hint."""
        message = super().__str__()
        return f"{message}. {self.hint}" if self.hint else message


class ConfigError(UnderstudyError):
    """A setting is unknown, malformed or out of range."""

    exit_code = 2
    hint = "See `understudy config show` for every key and its present value"


class AddressInUse(UnderstudyError):
    """A port that Understudy was told to listen on is taken."""

    exit_code = 3
    hint = "Stop the other process or choose another port; port 0 picks a free one"


class DataDirUnusable(UnderstudyError):
    """A data directory cannot be created, written or trusted."""

    exit_code = 4
    hint = "Choose another directory with --data-dir or mend its owner and mode"


class AdminUnreachable(UnderstudyError):
    """A command found no running server behind the admin port."""

    exit_code = 9
    hint = "Is `understudy serve` running, with this admin address? Name another with --admin HOST:PORT"


class AdminRefused(UnderstudyError):
    """A running server did not do what a command asked for."""

    exit_code = 10


# --- the log ---------------------------------------------------------------------------------------------------------


class WalError(UnderstudyError):
    """Base of what the write-ahead log reports."""

    exit_code = 5


class WalLocked(WalError):
    """Another process holds the directory."""

    exit_code = 6
    hint = "Only one process may use a data directory; stop the other one"


class WalDamaged(WalError):
    """The log holds something other than what was written."""

    exit_code = 7
    hint = "Run `understudy wal verify` for the place, then keep the `*.corrupted.*` copies"


class WalKeyMissing(WalError):
    """Segments exist and the key that signed them does not."""

    exit_code = 8
    hint = (
        "Put the key file back, or set wal.key_path or wal.key if the key is kept elsewhere; "
        "without it no entry can be trusted and none is replayed"
    )


class WalKeyUnsafe(WalError):
    """The key file may be read or written by others, or is not a plain file of ours."""

    exit_code = 8
    hint = "chmod 600 the key file and make sure that you own it"


class WalKeyExternal(WalError):
    """The key comes from outside the log, so that Understudy cannot make another one."""


class WalLatched(WalError):
    """A write or fsync failed: the log takes no more writes until it is reopened."""

    hint = "Mend the disk; `understudy wal reopen` or a restart takes writes again, what was acknowledged is safe"


class WalFull(WalError):
    """The log reached its size limit."""

    hint = "Bring Qdrant back so that the log drains, or raise wal.total_bytes"


class EntryRefused(WalError):
    """An entry is too large or its method is not one that may be logged."""

    hint = "Send smaller batches"


# --- calls -----------------------------------------------------------------------------------------------------------


class UpstreamUnreachable(UnderstudyError):
    """The transport failed; `maybe_applied` tells whether the request may have reached the other side."""

    def __init__(self, message: str, *, maybe_applied: bool) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied


class UpstreamTimeout(UpstreamUnreachable):
    """The time allowed for the call ran out while the other side was silent."""


class ReplicaUnavailable(UnderstudyError):
    """The replica process did not come back within the time of the call."""

    hint = "It restarts by itself; `understudy status` shows why it stopped"


class ReplicaRefused(UnderstudyError):
    """The replica answered a call of the proxy's own with a status; `code` is its number, `details` its text."""

    def __init__(self, message: str, *, code: int, details: str) -> None:
        super().__init__(message)
        self.code = code
        self.details = details
