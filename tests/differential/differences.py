"""Every known difference between an oracle and the server that the replica follows.

A row says what differs, which server it follows instead and why, and recognises the difference as narrowly as it can:
most correct the oracle's answer and compare again, so that what the row does not speak of is still compared. A row that
no run uses is a defect (`test_agreement` looks).
"""

from __future__ import annotations

from .engine_rows import ENGINE_ROWS
from .local_rows import LOCAL_ROWS

DIFFERENCES = (*ENGINE_ROWS, *LOCAL_ROWS)
