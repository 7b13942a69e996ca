"""The shape of a program that uses Qdrant through a framework.

`fill` creates its collections and puts the library in, `read` asks everything, `write` changes much. A program may be
opened on collections that another has filled: then `read` attaches to them as the framework does.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, ClassVar

from qdrant_client import AsyncQdrantClient, QdrantClient

from .transcript import Transcript


class Application(ABC):
    """One program with its clients; it keeps them through an outage, as programs do."""

    name: ClassVar[str]
    collections: ClassVar[tuple[str, ...]]

    def __init__(self, address: str) -> None:
        """Makes clients, calls nothing."""
        self.address = address
        self._loop = asyncio.Runner()
        self.client = QdrantClient(**self.options())
        self._async_client: AsyncQdrantClient | None = None

    @abstractmethod
    def fill(self, told: Transcript) -> None:
        """Create the collections and add the library."""

    @abstractmethod
    def read(self, told: Transcript) -> None:
        """Ask everything."""

    @abstractmethod
    def write(self, told: Transcript) -> None:
        """Add, overwrite and delete."""

    def options(self) -> dict[str, Any]:
        """What a user gives to a client, or to a framework that makes its own."""
        host, port = self.address.rsplit(":", 1)
        return {
            "host": host,
            "grpc_port": int(port),
            "port": 1,
            "prefer_grpc": True,
            "https": False,
            "check_compatibility": False,
        }

    @property
    def async_client(self) -> AsyncQdrantClient:
        """A client of the program's own loop."""
        if self._async_client is None:
            asyncio.set_event_loop(self._loop.get_loop())
            self._async_client = AsyncQdrantClient(**self.options())
        return self._async_client

    def wait(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the program's own loop."""
        return self._loop.run(call)

    def close(self) -> None:
        """Close the clients."""
        if self._async_client is not None:
            self.wait(self._async_client.close())
        self.client.close()
        self._loop.close()
