"""One load generator, in its own process: N callers send one request over and over for a while.

`python -m bench.load --target HOST:PORT --method /qdrant.Points/Query --body FILE --callers 16 --seconds 3` prints
one JSON object: calls, errors, seconds, calls_per_second, p50_ms, p99_ms. With `--rate R` calls begin at R a second in
all, and each is timed from the moment at which it was due: waiting behind a slow one counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

import grpc
import numpy as np


async def call_for(
    target: str, method: str, bodies: list[bytes], *, callers: int, seconds: float, rate: float = 0.0
) -> dict[str, float]:
    """Send `bodies` in turn from `callers` concurrent callers, `rate` a second in all (0 = as fast as answers come)."""
    latencies: list[float] = []
    errors = 0
    async with grpc.aio.insecure_channel(target, options=[("grpc.max_receive_message_length", -1)]) as channel:
        send = channel.unary_unary(method)
        await send(bodies[0], timeout=30)
        started = time.perf_counter()
        until = started + seconds

        async def caller(number: int) -> None:
            nonlocal errors
            at = number
            begun = started + number / rate if rate else time.perf_counter()
            while begun < until:
                if rate:
                    await asyncio.sleep(begun - time.perf_counter())
                try:
                    await send(bodies[at % len(bodies)], timeout=30)
                except grpc.aio.AioRpcError:
                    errors += 1
                now = time.perf_counter()
                latencies.append(now - begun)
                begun = begun + callers / rate if rate else now
                at += callers

        await asyncio.gather(*(caller(number) for number in range(callers)))
        elapsed = time.perf_counter() - started
    milliseconds = np.array(latencies) * 1000
    return {
        "calls": len(latencies),
        "errors": errors,
        "seconds": round(elapsed, 3),
        "calls_per_second": round(len(latencies) / elapsed, 1),
        "p50_ms": round(float(np.percentile(milliseconds, 50)), 3),
        "p99_ms": round(float(np.percentile(milliseconds, 99)), 3),
    }


def read_bodies(path: Path) -> list[bytes]:
    """Requests from a file of hexadecimal lines."""
    return [bytes.fromhex(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--bodies", type=Path, required=True)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=0.0)
    chosen = parser.parse_args()
    bodies = read_bodies(chosen.bodies)
    result = asyncio.run(
        call_for(chosen.target, chosen.method, bodies, callers=chosen.callers, seconds=chosen.seconds, rate=chosen.rate)
    )
    print(json.dumps(result))
