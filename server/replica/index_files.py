"""The index's directory: what it held when it was closed, and whether it still does.

Promises: `seal` writes a manifest with the size and CRC32C of every file once the index process has ended cleanly;
`unseal` takes the manifest away and returns what it says only if every file is as it was. A crash leaves no manifest,
so an index that was not closed is never believed. Mends nothing: a doubtful index is wiped and built again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import google_crc32c

_MANIFEST = "manifest.json"
# Chroma's own; every directory of it has one from the start.
_DATABASE = "chroma.sqlite3"
_FORMAT = 1
_CHUNK_BYTES = 1 << 20


class IndexFiles:
    """A directory for Chroma, and the manifest beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "chroma"

    def wipe(self) -> None:
        """Start from nothing."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.data.mkdir(mode=0o700, parents=True)
        self.directory.chmod(0o700)

    def is_there(self) -> bool:
        """Whether the running index still has its files, as far as names tell."""
        return (self.data / _DATABASE).exists()

    def byte_size(self) -> int:
        """Bytes in files."""
        return sum(size for size, _ in self._listed(with_sums=False).values())

    def seal(self, parts: list[dict[str, Any]]) -> None:
        """Remember the files and the parts that they hold."""
        content = {"format": _FORMAT, "parts": parts, "files": self._listed(with_sums=True)}
        scratch = self.directory / f"{_MANIFEST}.new"
        scratch.write_text(json.dumps(content))
        scratch.chmod(0o600)
        scratch.replace(self.directory / _MANIFEST)

    def unseal(self) -> list[dict[str, Any]] | None:
        """The parts of a cleanly closed, unchanged index, once; None when there is none to believe."""
        manifest = self.directory / _MANIFEST
        try:
            content = json.loads(manifest.read_text())
            manifest.unlink()
            if content["format"] != _FORMAT or content["files"] != _as_json(self._listed(with_sums=True)):
                return None
            parts: list[dict[str, Any]] = content["parts"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return parts

    def _listed(self, *, with_sums: bool) -> dict[str, tuple[int, int]]:
        listed: dict[str, tuple[int, int]] = {}
        for path in sorted(self.data.rglob("*")):
            try:
                if path.is_file():
                    listed[str(path.relative_to(self.data))] = (path.stat().st_size, _sum(path) if with_sums else 0)
            except FileNotFoundError:
                continue
        return listed


def _as_json(listed: dict[str, tuple[int, int]]) -> Any:
    return json.loads(json.dumps(listed))


def _sum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum = google_crc32c.extend(checksum, chunk)
    return checksum
