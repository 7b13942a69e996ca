"""The stand-in's process: `python -m tests.upstream.standin --data DIR --listen HOST:PORT`.

Prints `standin: control on HOST:PORT` and then `standin: listening on HOST:PORT`. The control port takes
`/standin.Control/Do` with JSON bodies: `{"do": "fail", …}`; see `Control`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from .engine import Engine
from .faults import Fault
from .journal import Journal
from .service import OPTIONS, Desk, Keys, Router


class Door:
    """The listening port, which can be shut (connections are refused) and opened again on the same number."""

    def __init__(self, desk: Desk, listen: str) -> None:
        self._desk = desk
        self._listen = listen
        self._server: grpc.aio.Server | None = None

    async def open(self) -> str:
        """Listen; returns HOST:PORT."""
        if self._server is None:
            server = grpc.aio.server(options=OPTIONS, compression=None)
            server.add_generic_rpc_handlers((Router(self._desk),))
            port = server.add_insecure_port(self._listen)
            if port == 0:
                raise SystemExit(f"standin: cannot listen on {self._listen}")
            self._listen = f"{self._listen.rsplit(':', 1)[0]}:{port}"
            await server.start()
            self._server = server
        return self._listen

    async def shut(self) -> None:
        """Drop every connection and refuse new ones."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)


class Control(grpc.GenericRpcHandler):
    """What a test may ask for, by the field `do`.

    `fault` (+ the fields of `faults.Fault`), `clear`, `release` (stalled calls go on), `refuse` (shut the port),
    `accept` (open it), `report` → counts per method, health checks, stalled calls, rules with how often each was taken.
    """

    def __init__(self, desk: Desk, door: Door) -> None:
        self._desk = desk
        self._door = door

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The one method."""
        if handler_call_details.method != "/standin.Control/Do":
            return None
        return grpc.unary_unary_rpc_method_handler(self._do)  # type: ignore[arg-type]

    async def _do(self, body: bytes, context: Any) -> bytes:
        order = json.loads(body)
        what = order.pop("do", None)
        faults = self._desk.faults
        if what == "fault":
            try:
                faults.add(Fault.parse(order))
            except (ValueError, KeyError, TypeError) as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a fault: {error!r}")
        elif what == "clear":
            faults.clear()
        elif what == "release":
            faults.release()
        elif what == "refuse":
            await self._door.shut()
        elif what == "accept":
            await self._door.open()
        elif what != "report":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"cannot do {what!r}")
        return json.dumps(self._report()).encode()

    def _report(self) -> dict[str, Any]:
        return {
            "counts": dict(self._desk.counts),
            "health": dict(self._desk.health),
            "stalled": self._desk.faults.stalled,
            "rules": [
                {"method": rule.method, "action": rule.action.value, "taken": rule.taken}
                for rule in self._desk.faults.rules
            ],
            "next_seq": self._desk.journal.next_seq,
        }


async def serve(arguments: argparse.Namespace) -> None:
    """Run until SIGTERM, SIGINT or, when asked to, the end of standard input."""
    directory: Path = arguments.data
    thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
    loop = asyncio.get_running_loop()
    engine = await loop.run_in_executor(thread, Engine, directory)
    keys = Keys(arguments.api_key, arguments.read_only_api_key)
    desk = Desk(engine, Journal(directory, arguments.journal_body_bytes), keys, thread)
    door = Door(desk, arguments.listen)
    control = grpc.aio.server(options=OPTIONS)
    control.add_generic_rpc_handlers((Control(desk, door),))
    control_port = control.add_insecure_port("127.0.0.1:0")
    await control.start()
    address = await door.open()
    print(f"standin: control on 127.0.0.1:{control_port}", flush=True)
    print(f"standin: listening on {address}", flush=True)
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    if arguments.exit_with_stdin:
        loop.add_reader(sys.stdin.fileno(), lambda: None if os.read(sys.stdin.fileno(), 4096) else done.set())
    await done.wait()
    desk.faults.clear()
    await door.shut()
    await control.stop(0)
    await loop.run_in_executor(thread, engine.close)


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="standin", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--api-key")
    parser.add_argument("--read-only-api-key")
    parser.add_argument("--journal-body-bytes", type=int, default=1 << 20)
    parser.add_argument("--exit-with-stdin", action="store_true", help="exit when standard input ends")
    arguments = parser.parse_args()
    arguments.data.mkdir(parents=True, exist_ok=True)
    asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()
