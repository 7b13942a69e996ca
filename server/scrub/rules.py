"""PURE but for reading the files it is given. Rules in gitleaks' TOML format, checked and compiled.

Promises: what a file says is what runs, or loading fails with a `ConfigError` that names file, rule and key. A file is
read as gitleaks reads it: keys in any case, `[[rules]]` with `id`, `regex`, `keywords`, `entropy`, `secretGroup`,
`allowlists` (`regexes`, `stopwords`, `regexTarget`, `condition`), `required`, `skipReport`; `[extend]` with
`useDefault`, `path`, `disabledRules`; global allowlists with `targetRules`.

Does not promise what needs a file system or a repository: `path` and `commits` describe files, and a payload is not a
file. A rule with a `path` runs on every text (more is redacted, never less); an allowlist allows nothing on account of
its `paths` or `commits`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import re2

from server.errors import ConfigError

OWN_RULES = Path(__file__).with_name("rules.toml")
FILE_BYTES = 4 * 1024 * 1024
EXTEND_DEPTH = 3

T = TypeVar("T")

_HINT = "See docs/security.md for the format of the rules"
_RULE_KEYS = frozenset({
    "id", "description", "regex", "path", "entropy", "secretgroup", "keywords", "tags",
    "allowlist", "allowlists", "required", "skipreport",
})  # fmt: skip
_FILE_KEYS = frozenset({"title", "description", "minversion", "extend", "rules", "allowlist", "allowlists"})
_ALLOW_KEYS = frozenset(
    {"description", "condition", "commits", "paths", "regextarget", "regexes", "stopwords", "targetrules"}
)
_EXTEND_KEYS = frozenset({"usedefault", "path", "url", "disabledrules"})
_REQUIRED_KEYS = frozenset({"id", "withinlines", "withincolumns"})


class Target(Enum):
    """What the regexes of an allowlist look at."""

    SECRET = "secret"  # noqa: S105
    MATCH = "match"
    LINE = "line"


@dataclass(frozen=True, slots=True)
class Allowlist:
    """When a find is not a secret after all.

    `impossible` marks one whose condition is AND and which names paths or commits: it can never hold for a payload.
    """

    regexes: tuple[Any, ...] = ()
    stopwords: tuple[str, ...] = ()
    target: Target = Target.SECRET
    all_must_hold: bool = False
    impossible: bool = False
    rules: frozenset[str] = frozenset()

    def allows(self, secret: bytes, match: bytes, line: bytes) -> bool:
        """Whether this find is to be left alone."""
        if self.impossible:
            return False
        looked_at = {Target.SECRET: secret, Target.MATCH: match, Target.LINE: line}[self.target]
        checks = []
        if self.regexes:
            checks.append(any(regex.search(looked_at) is not None for regex in self.regexes))
        if self.stopwords:
            folded = secret.decode("utf-8", "replace").lower()
            checks.append(any(word in folded for word in self.stopwords))
        if not checks:
            return False
        return all(checks) if self.all_must_hold else any(checks)


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of secret. `group` 0 means: the first group that took part, else the whole match."""

    id: str
    regex: Any
    description: str = ""
    keywords: tuple[str, ...] = ()
    entropy: float = 0.0
    group: int = 0
    allowlists: tuple[Allowlist, ...] = ()
    required: tuple[str, ...] = ()
    reports: bool = True


class _Table:
    """One table of a file, keys in lower case; every complaint names the file and the place."""

    def __init__(self, path: Path, where: str, content: object, known: frozenset[str]) -> None:
        self.path = path
        self.where = where
        if not isinstance(content, dict):
            raise self.wrong("must be a table")
        self.content: dict[str, Any] = {key.lower(): value for key, value in content.items()}
        for key in self.content:
            if key not in known:
                raise self.wrong(f"has unknown key `{key}`")

    def wrong(self, complaint: str) -> ConfigError:
        return ConfigError(f"rules file {self.path}: {self.where} {complaint}", hint=_HINT)

    def get(self, key: str, default: T) -> T:
        """A value of the type of `default`, which is returned when the key is not there."""
        value = self.content.get(key, default)
        if not isinstance(value, type(default)) or (isinstance(value, bool) and not isinstance(default, bool)):
            raise self.wrong(f"has `{key}` of type {type(value).__name__}, expected {type(default).__name__}")
        return value

    def strings(self, key: str) -> list[str]:
        value: list[Any] = self.get(key, [])
        if not all(isinstance(entry, str) for entry in value):
            raise self.wrong(f"has something other than strings in `{key}`")
        return list(value)

    def entropy(self, default: float) -> float:
        value = self.content.get("entropy", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 8:
            raise self.wrong("has an `entropy` that is no number from 0 to 8")
        return float(value)

    def tables(self, key: str, known: frozenset[str]) -> list[_Table]:
        entries: list[Any] = self.get(key, [])
        return [
            _Table(self.path, f"`{key}` {number} of {self.where}", one, known)
            for number, one in enumerate(entries, start=1)
        ]

    def regex(self, pattern: str) -> Any:
        """A regex in RE2's syntax (that of Go) over UTF-8 bytes."""
        options = re2.Options()
        options.log_errors = False
        try:
            return re2.compile(pattern.encode("utf-8"), options)
        except re2.error as error:
            reason = error.args[0] if error.args else error
            text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
            raise self.wrong(f"has a regex that RE2 refuses: {text}") from error


@dataclass(slots=True)
class _File:
    """What one file adds, before the files are put together."""

    path: Path
    rules: dict[str, _Table] = field(default_factory=dict)
    allowlists: tuple[Allowlist, ...] = ()
    use_default: bool = False
    base: Path | None = None
    disabled: frozenset[str] = frozenset()


def load(path: Path | None) -> tuple[Rule, ...]:
    """The rules that Understudy brings, then those of the operator's file.

    With `[extend] useDefault = true` a rule of the file with the id of one of ours changes ours (fields replace,
    keywords and allowlists are added), `disabledRules` switches ours off, and global allowlists count for ours too.
    Without it, ours stay as they are and the file's rules run beside them.
    """
    own = _compiled(_read(OWN_RULES))
    if path is None:
        return own
    chain = _chain(path)
    merged: dict[str, Rule] = {rule.id: rule for rule in own} if chain[-1].use_default else {}
    beside = () if chain[-1].use_default else own
    for file in reversed(chain):
        merged = {key: rule for key, rule in merged.items() if key not in file.disabled}
        for rule_id, table in file.rules.items():
            merged[rule_id] = _rule(table, merged.get(rule_id))
        merged = _with_global(merged, file.allowlists)
    theirs = tuple(merged.values())
    _check_required(path, theirs)
    return (*beside, *theirs)


def _chain(path: Path) -> list[_File]:
    """The file, then what it extends, at most EXTEND_DEPTH deep."""
    chain = [_read(path)]
    while (base := chain[-1].base) is not None:
        if len(chain) == EXTEND_DEPTH:
            raise ConfigError(f"rules {path} extend more than {EXTEND_DEPTH - 1} files", hint=_HINT)
        chain.append(_read(base))
    return chain


def _read(path: Path) -> _File:
    try:
        if path.stat().st_size > FILE_BYTES:
            raise ConfigError(f"rules file {path} is larger than {FILE_BYTES} bytes", hint=_HINT)
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read rules file {path}: {error.strerror}", hint=_HINT) from error
    try:
        content = tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"rules file {path} is not TOML: {error}", hint=_HINT) from error
    top = _Table(path, "the file", content, _FILE_KEYS)
    extend = _Table(path, "[extend]", top.content.get("extend", {}), _EXTEND_KEYS)
    if extend.get("url", ""):
        raise extend.wrong("has `url`, which is not supported")
    base = extend.get("path", "")
    file = _File(
        path,
        allowlists=_allowlists(top),
        use_default=extend.get("usedefault", False),
        base=path.parent / base if base else None,
        disabled=frozenset(extend.strings("disabledrules")),
    )
    for table in top.tables("rules", _RULE_KEYS):
        rule_id = table.get("id", "")
        if not rule_id or not rule_id.isprintable() or "]" in rule_id:
            raise table.wrong("has no usable `id`")
        if rule_id in file.rules:
            raise table.wrong(f"has the id `{rule_id}` of another rule")
        table.where = f"rule `{rule_id}`"
        file.rules[rule_id] = table
    return file


def _compiled(file: _File) -> tuple[Rule, ...]:
    rules = {rule_id: _rule(table, None) for rule_id, table in file.rules.items()}
    complete = tuple(_with_global(rules, file.allowlists).values())
    _check_required(file.path, complete)
    return complete


def _rule(table: _Table, base: Rule | None) -> Rule:
    pattern = table.get("regex", "")
    rule = base or Rule(table.get("id", ""), None)
    if pattern:
        rule = replace(rule, regex=table.regex(pattern))
    elif base is None:
        if table.get("path", ""):
            # A rule about file names only: nothing in a payload can meet it.
            return replace(rule, reports=False)
        raise table.wrong("has no `regex`")
    rule = replace(
        rule,
        description=table.get("description", rule.description),
        entropy=table.entropy(rule.entropy),
        group=table.get("secretgroup", rule.group),
        keywords=(*rule.keywords, *(word.casefold() for word in table.strings("keywords") if word)),
        allowlists=(*rule.allowlists, *_allowlists(table)),
        required=(*rule.required, *(one.get("id", "") for one in table.tables("required", _REQUIRED_KEYS))),
        reports=not table.get("skipreport", not rule.reports),
    )
    groups = rule.regex.groups if rule.regex is not None else 0
    if not 0 <= rule.group <= groups:
        raise table.wrong(f"has secretGroup {rule.group}, its regex has {groups} groups")
    return rule


def _with_global(rules: Mapping[str, Rule], allowlists: Sequence[Allowlist]) -> dict[str, Rule]:
    return {
        rule_id: replace(
            rule,
            allowlists=(*rule.allowlists, *(one for one in allowlists if not one.rules or rule_id in one.rules)),
        )
        for rule_id, rule in rules.items()
    }


def _check_required(path: Path, rules: Iterable[Rule]) -> None:
    known = {rule.id for rule in rules if rule.regex is not None}
    for rule in rules:
        for other in rule.required:
            if other not in known:
                raise ConfigError(f"rules file {path}: rule `{rule.id}` requires unknown rule `{other}`", hint=_HINT)


def _allowlists(table: _Table) -> tuple[Allowlist, ...]:
    entries = table.tables("allowlists", _ALLOW_KEYS)
    if "allowlist" in table.content:
        entries.append(_Table(table.path, f"the allowlist of {table.where}", table.content["allowlist"], _ALLOW_KEYS))
    return tuple(_allowlist(entry) for entry in entries)


def _allowlist(table: _Table) -> Allowlist:
    condition = table.get("condition", "OR").upper()
    if condition not in {"OR", "AND", "||", "&&", ""}:
        raise table.wrong(f"has condition `{condition}`, expected OR or AND")
    target = table.get("regextarget", "") or "secret"
    if target not in {one.value for one in Target}:
        raise table.wrong(f"has regexTarget `{target}`, expected secret, match or line")
    every = condition in {"AND", "&&"}
    about_files = table.strings("paths") + table.strings("commits")
    return Allowlist(
        regexes=tuple(table.regex(pattern) for pattern in table.strings("regexes")),
        stopwords=tuple(word.lower() for word in table.strings("stopwords") if word),
        target=Target(target),
        all_must_hold=every,
        impossible=every and bool(about_files),
        rules=frozenset(table.strings("targetrules")),
    )
