"""PURE. How Qdrant's full-text index cuts text into tokens.

Promises: the tokenizers word, whitespace and prefix with lower-casing, token lengths, ASCII folding, own stopwords and
stemmers. Does not promise the language tables (stopwords by language, multilingual): `tokenizer` raises NotServed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import regex

from generated.qdrant import collections_pb2 as collections
from server.replica import stems
from server.replica.ascii_folding import folded
from server.replica.refusal import NotServed

Tokenizer: TypeAlias = Callable[[str], list[str]]
"""Text → its tokens in order."""

# As Rust sees letters and digits: Python's own `\w` lacks the vowel signs that many scripts write as marks.
_WORD = regex.compile(r"[\p{Alphabetic}\p{N}]+")
_NO_SPACE = regex.compile(r"\P{White_Space}+")


def words(text: str) -> list[str]:
    """What Qdrant does to text without an index, from 1.19.1 on: words, lower-cased."""
    return [word.lower() for word in _WORD.findall(text)]


def _stemmer(params: collections.TextIndexParams) -> Callable[[str], str] | None:
    if not params.HasField("stemmer") or params.stemmer.WhichOneof("stemming_params") != "snowball":
        return None
    found = stems.stemmer(params.stemmer.snowball.language)
    if found is None:
        raise NotServed(f"a text index with a stemmer for `{params.stemmer.snowball.language}` is not known here")
    return found


def tokenizer(params: collections.TextIndexParams, *, of_query: bool) -> Tokenizer:
    """The tokenizer of a text index. `of_query`: a prefix index keeps a query's words whole.

    Raises NotServed for an index that needs tables of a language.
    """
    stem = _stemmer(params)
    if params.stopwords.languages:
        raise NotServed("a text index with stopwords of a language needs the server's language tables")
    if params.tokenizer in (collections.Multilingual, collections.Code):
        raise NotServed("a text index with this tokenizer needs the server's language tables")
    lower = params.lowercase if params.HasField("lowercase") else True
    shortest = params.min_token_len if params.HasField("min_token_len") else 0
    longest = params.max_token_len if params.HasField("max_token_len") else None
    stopwords = {word.lower() if lower else word for word in params.stopwords.custom}

    # A query may be the beginning of a longer word: what is a stopword in a text is none there.
    keeps_stopwords = of_query and params.tokenizer == collections.Prefix

    def accepted(text: str) -> Iterator[str]:
        for piece in (_NO_SPACE if params.tokenizer == collections.Whitespace else _WORD).findall(text):
            written = folded(piece) if params.ascii_folding else piece
            token = written.lower() if lower else written
            if keeps_stopwords or token not in stopwords:
                yield token if stem is None else stem(token)

    def whole(text: str) -> list[str]:
        return [
            token for token in accepted(text) if len(token) >= shortest and (longest is None or len(token) <= longest)
        ]

    def prefixes(text: str) -> list[str]:
        least = max(shortest, 1)
        if of_query:
            return [token[:longest] for token in accepted(text) if len(token) >= least]
        return [
            token[:end]
            for token in accepted(text)
            for end in range(least, min(len(token), longest if longest is not None else len(token)) + 1)
        ]

    return prefixes if params.tokenizer == collections.Prefix else whole
