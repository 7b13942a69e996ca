"""A Chroma server that holds the vector index instead of a directory: where it is, and whether anybody answers there.

Promises: knocking costs a connection, no process. Whose server it is and what it holds, only the index process knows.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

_KNOCK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ChromaServer:
    """An address for HTTP."""

    host: str
    port: int
    tls: bool

    @classmethod
    def at(cls, url: str) -> ChromaServer:
        """From a URL that the settings have checked."""
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        return cls(parts.hostname, parts.port, parts.scheme == "https")

    def knock(self) -> None:
        """Raises OSError when nobody listens there."""
        socket.create_connection((self.host, self.port), timeout=_KNOCK_SECONDS).close()
