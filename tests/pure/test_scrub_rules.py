"""A rules file says what runs, or says clearly why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import ConfigError
from server.scrub import Scrubber
from server.scrub.rules import load

RULE = "[[rules]]\nid = \"house\"\nregex = '''HOUSE-([a-z0-9]{8})'''\nkeywords = [\"HOUSE-\"]\n"


def written(tmp_path: Path, text: str, name: str = "rules.toml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def scrubber(tmp_path: Path, text: str) -> Scrubber:
    return Scrubber.load(written(tmp_path, text))


def test_a_file_adds_rules_to_ours(tmp_path: Path) -> None:
    ours = scrubber(tmp_path, RULE)
    assert ours.scrub_text("HOUSE-abcd1234 house-abcd1234") == "HOUSE-[REDACTED:house] house-abcd1234"
    assert set(Scrubber.load().rule_ids) < set(ours.rule_ids)


def test_keys_come_in_any_case_and_the_group_is_chosen(tmp_path: Path) -> None:
    text = RULE.replace("HOUSE-([a-z0-9]{8})", "(HOUSE)-([a-z0-9]{8})") + "secretgroup = 2\nENTROPY = 1.0\n"
    assert scrubber(tmp_path, text).scrub_text("HOUSE-abcd1234") == "HOUSE-[REDACTED:house]"


def test_without_secret_group_the_first_group_that_took_part_is_the_secret(tmp_path: Path) -> None:
    text = RULE.replace("HOUSE-([a-z0-9]{8})", "HOUSE-(?:([0-9]{8})|([a-z]{8}))")
    assert scrubber(tmp_path, text).scrub_text("HOUSE-abcdefgh") == "HOUSE-[REDACTED:house]"
    text = RULE.replace("([a-z0-9]{8})", "[a-z0-9]{8}")
    assert scrubber(tmp_path, text).scrub_text("HOUSE-abcdefgh") == "[REDACTED:house]"


def test_entropy_must_be_strictly_above(tmp_path: Path) -> None:
    at = scrubber(tmp_path, RULE + "entropy = 3.0\n")
    assert at.scrub_text("HOUSE-abcdefgh") == "HOUSE-abcdefgh"
    below = scrubber(tmp_path, RULE + "entropy = 2.99\n")
    assert below.scrub_text("HOUSE-abcdefgh") == "HOUSE-[REDACTED:house]"


def test_a_rule_without_keywords_always_runs(tmp_path: Path) -> None:
    ours = scrubber(tmp_path, "[[rules]]\nid = 'x'\nregex = '''zz[0-9]{4}zz'''\n")
    assert ours.scrub_text("a zz1234zz b") == "a [REDACTED:x] b"


def test_a_keyword_beyond_ascii_is_matched_in_any_case(tmp_path: Path) -> None:
    ours = scrubber(tmp_path, "[[rules]]\nid = 'x'\nregex = '''(?i)schlüssel ([0-9]{4})'''\nkeywords = ['SCHLÜSSEL']\n")
    assert ours.scrub_text("Schlüssel 1234") == "Schlüssel [REDACTED:x]"


@pytest.mark.parametrize(
    ("allowlist", "allowed"),
    [
        ("regexes = ['''^abcd''']", True),
        ("regexes = ['''^HOUSE''']", False),
        ("regexes = ['''^HOUSE''']\nregexTarget = 'match'", True),
        ("regexes = ['''tail$''']\nregexTarget = 'line'", True),
        ("regexes = ['''other''']\nregexTarget = 'line'", False),
        ("stopwords = ['BCD1']", True),
        ("stopwords = ['zzz']", False),
        ("stopwords = ['bcd1']\nregexes = ['''^zzz''']", True),
        ("stopwords = ['bcd1']\nregexes = ['''^zzz''']\ncondition = 'AND'", False),
        ("stopwords = ['bcd1']\nregexes = ['''^abcd''']\ncondition = 'AND'", True),
        ("stopwords = ['bcd1']\npaths = ['''x''']\ncondition = 'AND'", False),
        ("paths = ['''.*''']", False),
        ("commits = ['abc']", False),
    ],
)
def test_allowlists(tmp_path: Path, allowlist: str, allowed: bool) -> None:
    text = "other\nHOUSE-abcd1234 tail\nother"
    for form in ("[[rules.allowlists]]", "[rules.allowlist]"):
        clean = scrubber(tmp_path, f"{RULE}{form}\n{allowlist}\n").scrub_text(text)
        assert (clean == text) == allowed, form


def test_a_global_allowlist_counts_for_the_file_and_for_ours_only_when_it_extends_them(tmp_path: Path) -> None:
    token = "glpat-abcdefgh12345678WXYZ"
    for extend, ours_too in (("", False), ("[extend]\nuseDefault = true\n", True)):
        found = scrubber(tmp_path, f"{extend}[[allowlists]]\nstopwords = ['abcd']\n{RULE}")
        assert found.scrub_text("HOUSE-abcd1234") == "HOUSE-abcd1234"
        assert (found.scrub_text(token) == token) == ours_too
    only = scrubber(tmp_path, f"[[allowlists]]\ntargetRules = ['other']\nstopwords = ['abcd']\n{RULE}")
    assert only.scrub_text("HOUSE-abcd1234") == "HOUSE-[REDACTED:house]"


def test_extending_changes_and_disables_ours(tmp_path: Path) -> None:
    token = "glpat-abcdefgh12345678WXYZ"
    off = scrubber(tmp_path, "[extend]\nuseDefault = true\ndisabledRules = ['gitlab-token']\n")
    assert off.scrub_text(token) == token
    changed = scrubber(
        tmp_path,
        "[extend]\nuseDefault = true\n[[rules]]\nid = 'gitlab-token'\n[[rules.allowlists]]\nstopwords = ['wxyz']\n",
    )
    assert changed.scrub_text(token) == token
    assert changed.scrub_text(token.replace("WXYZ", "WXY1")) == "[REDACTED:gitlab-token]"
    beside = scrubber(tmp_path, "[[rules]]\nid = 'gitlab-token'\nregex = '''never'''\nkeywords = ['never']\n")
    assert beside.scrub_text(token) == "[REDACTED:gitlab-token]"


def test_a_file_may_extend_another(tmp_path: Path) -> None:
    written(tmp_path, RULE, "base.toml")
    ours = scrubber(tmp_path, "[extend]\npath = 'base.toml'\n[[rules]]\nid = 'house'\nentropy = 3.5\n")
    assert ours.scrub_text("HOUSE-abcdefgh") == "HOUSE-abcdefgh"
    written(tmp_path, "[extend]\npath = 'loop.toml'\n", "loop.toml")
    with pytest.raises(ConfigError, match="extend more than"):
        load(tmp_path / "loop.toml")


def test_required_and_helping_rules(tmp_path: Path) -> None:
    text = RULE + "[[rules.required]]\nid = 'near'\n[[rules]]\nid = 'near'\nregex = '''street'''\nskipReport = true\n"
    ours = scrubber(tmp_path, text)
    assert ours.scrub_text("HOUSE-abcd1234 street") == "HOUSE-[REDACTED:house] street"
    assert ours.scrub_text("HOUSE-abcd1234 avenue") == "HOUSE-abcd1234 avenue"


def test_a_rule_with_a_path_runs_on_every_text_and_one_with_a_path_alone_on_none(tmp_path: Path) -> None:
    text = RULE + "path = '''\\.tf$'''\n[[rules]]\nid = 'file'\npath = '''\\.p12$'''\n"
    assert scrubber(tmp_path, text).scrub_text("HOUSE-abcd1234 a.p12") == "HOUSE-[REDACTED:house] a.p12"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[rules", "is not TOML"),
        ("rules = 3", "`rules`"),
        ("rules = [3]", "must be a table"),
        ("[[rules]]\nregex = 'a'", "no usable `id`"),
        ("[[rules]]\nid = 'a]'\nregex = 'a'", "no usable `id`"),
        ("[[rules]]\nid = 'a'", "has no `regex`"),
        ("[[rules]]\nid = 'a'\nregex = '(?=a)'", "RE2 refuses"),
        ("[[rules]]\nid = 'a'\nregex = '('", "RE2 refuses"),
        ("[[rules]]\nid = 'a'\nregex = 3", "`regex` of type int"),
        ("[[rules]]\nid = 'a'\nregex = 'a'\nentropy = 'x'", "entropy"),
        ("[[rules]]\nid = 'a'\nregex = 'a'\nentropy = 99", "entropy"),
        ("[[rules]]\nid = 'a'\nregex = 'a'\nsecretGroup = 1", "secretGroup 1"),
        ("[[rules]]\nid = 'a'\nregex = 'a'\nsecretGroup = true", "secretgroup"),
        ("[[rules]]\nid = 'a'\nregex = 'a'\nkeywords = 'a'", "keywords"),
        ("[[rules]]\nid = 'a'\nregex = 'a'\nkeywords = [1]", "keywords"),
        ("[[rules]]\nid = 'a'\nregex = 'a'\nentropie = 1", "unknown key `entropie`"),
        ("[[rules]]\nid = 'a'\nregex = 'a'\n[[rules]]\nid = 'a'\nregex = 'b'", "id `a` of another rule"),
        ("[[rules]]\nid = 'a'\nregex = 'a'\n[[rules.allowlists]]\ncondition = 'XOR'", "condition"),
        ("[[rules]]\nid = 'a'\nregex = 'a'\n[[rules.allowlists]]\nregexTarget = 'file'", "regexTarget"),
        ("[[rules]]\nid = 'a'\nregex = 'a'\n[[rules.allowlists]]\nregexes = ['(']", "RE2 refuses"),
        ("[[rules]]\nid = 'a'\nregex = 'a'\n[[rules.required]]\nid = 'b'", "requires unknown rule `b`"),
        ("nonsense = 1", "unknown key `nonsense`"),
        ("[extend]\nurl = 'http://x'", "not supported"),
        ("[extend]\npath = 'missing.toml'", "cannot read"),
    ],
)
def test_bad_files_are_refused_with_file_and_place(tmp_path: Path, text: str, complaint: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert complaint in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_file_that_cannot_be_read_or_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not TOML"):
        load(tmp_path / "binary.toml")
    (tmp_path / "huge.toml").write_bytes(b"#" * (4 * 1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="larger than"):
        load(tmp_path / "huge.toml")
