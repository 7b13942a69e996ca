"""A small library of texts, and embeddings that need no model: a word is a vector drawn from its hash.

Texts that share words are near to each other, equal texts have equal vectors, and no two scores are equal by accident.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np

DIMENSION = 24
_SPACE = uuid.UUID("5f0f6d4e-6a39-4a4e-9a83-3f2a5f0c1a77")

_SUBJECTS = {
    "ships": (
        "harbour pilots guide ships past the sandbanks",
        "sails and hulls of old ships",
        "a lighthouse warns ships",
    ),
    "bread": ("rye bread needs a sour dough", "the baker lets bread rise at night", "salt and flour make bread"),
    "stars": ("a telescope gathers the light of stars", "stars fade at dawn", "sailors steer by the stars at night"),
    "bees": ("bees dance to show the way", "honey of the bees in spring", "a hive of bees in an old lighthouse"),
    "trains": ("night trains cross the border", "the signals stop two trains", "steam trains need water and coal"),
}
_CITIES = ("Bremen", "Oslo", "Turku", "Porto")


@dataclass(frozen=True, slots=True)
class Text:
    """One text with its id and what is known about it."""

    id: str
    words: str
    metadata: dict[str, Any]


def text_id(name: str) -> str:
    """A UUID that is always the same for a name."""
    return str(uuid.uuid5(_SPACE, name))


def library() -> list[Text]:
    """Thirty texts, with metadata of every type that JSON has; some lack a key, some have null or an empty list."""
    texts = []
    for number in range(30):
        subject = list(_SUBJECTS)[number % 5]
        words = f"{_SUBJECTS[subject][number // 5 % 3]}, part {number}"
        metadata: dict[str, Any] = {
            "subject": subject,
            "year": 1990 + number,
            "rating": number / 4,
            "open": number % 3 == 0,
            "tags": [subject, _CITIES[number % 4].lower()][: number % 3],
            "author": {"name": f"author {number % 7}", "born": 1900 + number % 7},
            "loans": [{"reader": f"reader {number % 3}", "days": number % 5}, {"reader": "nobody", "days": 9}],
            "printed": f"2024-{1 + number % 12:02}-{1 + number % 28:02}T10:00:00+00:00",
        }
        if number % 4:
            metadata["city"] = _CITIES[number % 4]
        if number % 5 == 2:
            metadata["note"] = None
        texts.append(Text(text_id(f"text {number}"), words, metadata))
    return texts


def dense(text: str) -> list[float]:
    """The sum of the words' vectors and a little of the whole text's."""
    total = 0.05 * _hashed(text)
    for word in _words(text):
        total = total + _hashed(word)
    return [float(value) for value in total]


def sparse(text: str) -> tuple[list[int], list[float]]:
    """Indices in order, and a weight for each word, all a little larger or smaller than in any other text.

    Without that, texts that share the same words of a query would have equal scores, and which of them comes first,
    and so what a fusion of ranks makes of them, is left open by Qdrant.
    """
    weights: dict[int, float] = {}
    own = 1 + float(_hashed(text).sum()) / 64
    for word in _words(text):
        digest = hashlib.sha256(word.encode()).digest()
        index = int.from_bytes(digest[:2], "big")
        weights[index] = weights.get(index, 0.0) + own * (0.5 + digest[2] / 256)
    return sorted(weights), [weights[index] for index in sorted(weights)]


def _words(text: str) -> list[str]:
    return text.lower().replace(",", " ").split()


def _hashed(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    digest = hashlib.sha256(text.encode()).digest()
    return (np.frombuffer(digest[:DIMENSION], np.uint8).astype(np.float32) - 127.5) / 128
