"""Whether clients' writes are taken now, and what is done so that they are again.

Promises: a log that failed or is short of space is looked after once a second; whoever watches hears of each change at
once. While Qdrant answers, writes are its own and a log that takes none is no reason to send clients away: it is told
by `understudy status` and the metrics. Reads go on in every case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from server.errors import UnderstudyError
from server.telemetry import Telemetry
from server.wal.log import Log

_TEND_EVERY_SECONDS = 1.0


class Readiness:
    """`reason` is why a write would be refused now, empty when it would be taken."""

    def __init__(self, log: Log, *, is_forwarding: Callable[[], bool], telemetry: Telemetry) -> None:
        self.reason = ""
        # Called with whether writes are taken.
        self.on_change: Callable[[bool], None] = _ignore
        self._log = log
        self._is_forwarding = is_forwarding
        self._telemetry = telemetry
        self._reported = ""
        self._problem = ""
        log.on_change = self.refresh

    async def run(self) -> None:
        """Look after the log until cancelled."""
        while True:
            try:
                await self._log.tend()
                self._problem = ""
            except UnderstudyError as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    self._telemetry.log.error("looking after the log failed", error=self._problem)
            self.refresh()
            await asyncio.sleep(_TEND_EVERY_SECONDS)

    def refresh(self) -> None:
        """Look at the log and the state; tell who watches when that changed the answer."""
        why = self._log.why_no_writes
        if bool(why) is not bool(self._reported):
            if why:
                self._telemetry.log.error("the log takes no writes", reason=why)
            else:
                self._telemetry.log.info("the log takes writes again")
            self._reported = why
        was_ready, self.reason = not self.reason, "" if self._is_forwarding() else why
        if was_ready is bool(self.reason):
            self.on_change(not self.reason)


def _ignore(_are_writes_taken: bool) -> None:
    """What happens on a change that nobody watches."""
