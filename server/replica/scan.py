"""One vector against many, on all cores.

Promises: the same numbers whatever the number of threads, up to the rounding of a dot product; small work stays in the
calling thread. The threads are this module's own because a BLAS that splits the work itself keeps its threads spinning
after each call, which costs the proxy its processor: the process runs with one BLAS thread
(`server.replica.BLAS_ENVIRONMENT`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]

# A thread is worth waking for about this much to read.
_BYTES_PER_THREAD = 4 * 1024 * 1024
_THREADS_MOST = 8


@lru_cache(maxsize=1)
def _threads() -> tuple[ThreadPoolExecutor | None, int]:
    """The other threads, and how many there are with the caller's."""
    count = min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _THREADS_MOST
    )
    return (ThreadPoolExecutor(count - 1, thread_name_prefix="replica-scan") if count > 1 else None), count


def in_parts(rows: int, row_bytes: int, compute: Callable[[slice, Floats], None]) -> Floats:
    """`compute(part, result)` for parts of `rows` rows that together are all of them, at the same time."""
    result = np.empty(rows, dtype=np.float32)
    pool, most = _threads()
    count = min(most, rows * row_bytes // _BYTES_PER_THREAD)
    if pool is None or count < 2:
        compute(slice(0, rows), result)
        return result
    edges = [rows * number // count for number in range(count + 1)]
    waiting = [pool.submit(compute, slice(edges[at], edges[at + 1]), result) for at in range(1, count)]
    try:
        compute(slice(0, edges[1]), result)
    finally:
        for one in waiting:
            one.result()
    return result


def products(rows: Floats, query: Floats) -> Floats:
    """The dot product of each row (n by d) with a vector (d)."""

    def compute(part: slice, result: Floats) -> None:
        np.dot(rows[part], query, out=result[part])

    return in_parts(len(rows), rows.shape[1] * 4, compute)
