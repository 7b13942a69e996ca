"""PURE. Finds secrets in a text and redacts them.

Promises: keyword prefilter → regex → secret group → Shannon entropy strictly above the threshold → allowlists →
`[REDACTED:rule-id]`. What it returns holds nothing that the rules find: `scrub_text(scrub_text(x)) == scrub_text(x)`.
Nothing in a text switches it off. Time is linear in the text for our own rules (RE2, bounded passes).
Does not promise to see through encodings (base64, compression, percent signs), nor a secret split over two texts.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ahocorasick
import re2

from server.scrub.rules import Rule

# A text that still changes after this many passes (only rules that match nearly anything do that) is redacted whole.
PASSES = 4
WHOLE = "whole-value"
_CONTEXT_CHARS = 64
# What is no secret is searched once more up to this length: longer, time would not be linear in the text.
_LOOKED_INTO_BYTES = 512
_BLANK = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Find:
    """Bytes `start` to `end` of the UTF-8 text are a secret by rule number `rule`."""

    start: int
    end: int
    rule: int


def shannon(secret: bytes) -> float:
    """Bits per character, as gitleaks counts: characters over the length in bytes."""
    if not secret:
        return 0.0
    size = len(secret)
    counts: Iterable[int] = Counter(secret.decode("utf-8", "replace")).values()
    return -sum(count / size * math.log2(count / size) for count in counts)


class Engine:
    """Compiled rules. Holds no state of the texts it saw but a bounded cache of names."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rule for rule in rules if rule.regex is not None)
        self._by_id: dict[str, int] = {rule.id: number for number, rule in enumerate(self.rules)}
        self._always = frozenset(n for n, rule in enumerate(self.rules) if rule.reports and not rule.keywords)
        self._automaton = _automaton(self.rules)
        self._gate = _gate(self.rules)
        self._does_anything = any(rule.reports for rule in self.rules)
        # A redaction is recognised by the ids of the rules that are loaded, never by its shape: `[REDACTED:` and a
        # secret written after it by a client is a text like any other.
        ids = "|".join(str(re2.escape(one)) for one in (*dict.fromkeys(rule.id for rule in self.rules), WHOLE))
        self._marker = re2.compile(rf"\[REDACTED:(?:{ids})\]".encode())
        self._is_telling = lru_cache(maxsize=4096)(self._names_a_keyword)

    def may_hold_secrets(self, body: bytes) -> bool:
        """Whether any rule could match a string inside this serialized message; False is a proof.

        Sound because a string lies in a message in one piece, and each keyword of a rule lies in the text it matches.
        """
        if self._gate is None:
            return self._does_anything
        return self._gate.search(body) is not None

    def scrub(self, text: str, name: str = "") -> tuple[str, int]:
        """The text without secrets, and how many were redacted. The same object when there are none.

        `name` is the name that the text goes by (a payload key): `{"api_key": "…"}` is judged as `api_key = "…"`.
        """
        data = text.encode("utf-8", "surrogatepass")
        context = self._context(name)
        if not context and not self.may_hold_secrets(data):
            return text, 0
        count = 0
        for _ in range(PASSES):
            finds = self._finds(data, context)
            if not finds:
                return (data.decode("utf-8", "surrogatepass"), count) if count else (text, 0)
            count += len(finds)
            data = self._redacted(data, finds)
        if self._finds(data, context):
            return f"[REDACTED:{WHOLE}]", count
        return data.decode("utf-8", "surrogatepass"), count

    def _context(self, name: str) -> bytes:
        """What stands before a value so that rules about assignments see its name; empty = it says nothing."""
        short = name[-_CONTEXT_CHARS:]
        return f'{short} = "'.encode("utf-8", "replace") if short and self._is_telling(short) else b""

    def _names_a_keyword(self, name: str) -> bool:
        return next(iter(self._automaton.iter(name.casefold())), None) is not None

    def _finds(self, data: bytes, context: bytes) -> list[Find]:
        """What is to be redacted: in order, apart, none of it a redaction already."""
        if data == f"[REDACTED:{WHOLE}]".encode():
            return []
        found = list(self._search(data))
        if context:
            shift, end = len(context), len(context) + len(data)
            for find in self._search(context + data + b'"'):
                start, stop = max(find.start, shift), min(find.end, end)
                if start < stop:
                    found.append(Find(start - shift, stop - shift, find.rule))
        if not found:
            return found
        return _apart(self._fresh(data, found))

    def _search(self, data: bytes) -> Iterator[Find]:
        text = data.decode("utf-8", "surrogatepass")
        for number in self._candidates(text):
            rule = self.rules[number]
            if rule.required and not all(self._meets(other, text, data) for other in rule.required):
                continue
            yield from self._by_rule(number, data)

    def _meets(self, rule_id: str, text: str, data: bytes) -> bool:
        number = self._by_id[rule_id]
        rule = self.rules[number]
        folded = text.casefold()
        if rule.keywords and not any(word in folded for word in rule.keywords):
            return False
        return next(self._by_rule(number, data), None) is not None

    def _candidates(self, text: str) -> list[int]:
        """Rules whose keyword occurs in the text, and those without keywords, in the order of the rules."""
        folded = text.lower() if text.isascii() else text.casefold()
        numbers = set(self._always)
        for _, found in self._automaton.iter(folded):
            numbers.update(found)
        return sorted(numbers)

    def _by_rule(self, number: int, data: bytes) -> Iterator[Find]:
        rule, at = self.rules[number], 0
        while at <= len(data) and (match := rule.regex.search(data, at)) is not None:
            start, end = _secret(rule, match)
            at = max(match.end(), match.start() + 1)
            if start < end and _is_secret(rule, match, data, start, end):
                yield Find(*_whole_characters(data, start, end), number)
            elif match.start() < start and end - start <= _LOOKED_INTO_BYTES:
                # What looked like a value may be the name of the next one: `password: password = …`.
                at = start

    def _fresh(self, data: bytes, finds: Iterable[Find]) -> list[Find]:
        """Without what is redacted already; a find that touches a redaction grows over it."""
        markers = [match.span() for match in self._marker.finditer(data)] if b"[REDACTED:" in data else []
        if not markers:
            return list(finds)
        starts = [first for first, _ in markers]
        fresh = []
        for find in finds:
            start, end, covered = find.start, find.end, 0
            for first, last in markers[max(0, bisect_right(starts, find.start) - 1) : bisect_left(starts, find.end)]:
                if find.start < last:
                    covered += min(last, find.end) - max(first, find.start)
                    start, end = min(start, first), max(end, last)
            if covered < find.end - find.start:
                fresh.append(Find(start, end, find.rule))
        return fresh

    def _redacted(self, data: bytes, finds: Sequence[Find]) -> bytes:
        pieces, at = [], 0
        for find in finds:
            pieces += [data[at : find.start], f"[REDACTED:{self.rules[find.rule].id}]".encode()]
            at = find.end
        return b"".join([*pieces, data[at:]])


def _is_secret(rule: Rule, match: Any, data: bytes, start: int, end: int) -> bool:
    secret = data[start:end]
    if rule.entropy and shannon(secret) <= rule.entropy:
        return False
    if not rule.allowlists:
        return True
    line = _line(data, match.start(), match.end())
    return not any(one.allows(secret, match.group(), line) for one in rule.allowlists)


def _apart(finds: Iterable[Find]) -> list[Find]:
    """Overlapping finds, and touching ones of one rule, become one: it is named by the first of their rules."""
    joined: list[Find] = []
    for find in sorted(finds, key=lambda one: (one.start, one.end)):
        last = joined[-1] if joined else None
        if last is not None and (find.start < last.end or (find.start == last.end and find.rule == last.rule)):
            joined[-1] = Find(last.start, max(last.end, find.end), min(last.rule, find.rule))
        else:
            joined.append(find)
    return joined


def _secret(rule: Rule, match: Any) -> tuple[int, int]:
    """Where the secret lies: the rule's group, else the first group that took part, else the whole match."""
    if rule.group:
        return _span(match, rule.group)
    for group in range(1, rule.regex.groups + 1):
        start, end = _span(match, group)
        if start < end:
            return start, end
    return _span(match, 0)


def _span(match: Any, group: int) -> tuple[int, int]:
    start, end = match.span(group)
    return int(start), int(end)


def _line(data: bytes, start: int, end: int) -> bytes:
    first = data.rfind(b"\n", 0, start) + 1
    last = data.find(b"\n", end)
    return data[first : len(data) if last < 0 else last]


def _whole_characters(data: bytes, start: int, end: int) -> tuple[int, int]:
    """RE2's `\\C` can cut a character in two; a redaction must not."""
    while start > 0 and data[start] & 0xC0 == 0x80:
        start -= 1
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    return start, end


def _automaton(rules: Sequence[Rule]) -> Any:
    words: dict[str, set[int]] = {}
    for number, rule in enumerate(rules):
        for word in rule.keywords if rule.reports else ():
            words.setdefault(word, set()).add(number)
    automaton = ahocorasick.Automaton()
    for word, numbers in words.items():
        automaton.add_word(word, frozenset(numbers))
    if words:
        automaton.make_automaton()
        return automaton
    return _NoWords()


class _NoWords:
    """An automaton without words; pyahocorasick refuses to iterate over one."""

    def iter(self, _text: str) -> Iterator[tuple[int, frozenset[int]]]:
        return iter(())


def _gate(rules: Sequence[Rule]) -> Any | None:
    """One search over raw bytes that no text with a keyword passes unseen; None = there is no such search."""
    words = {word for rule in rules if rule.reports for word in rule.keywords}
    if any(rule.reports and not rule.keywords for rule in rules) or not all(word.isascii() for word in words):
        return None
    if not words:
        return None
    # The two letters beyond ASCII that fold to ASCII letters: the Kelvin sign and the long s, in UTF-8.
    pieces = [*(re2.escape(word.encode()) for word in sorted(words)), b"\xe2\x84\xaa", b"\xc5\xbf"]
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.case_sensitive = False
    options.log_errors = False
    return re2.compile(b"|".join(pieces), options)
