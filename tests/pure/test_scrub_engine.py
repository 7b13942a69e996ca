"""What is found, what is left alone, and that nothing can hide."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.scrub import Scrubber
from server.scrub.engine import WHOLE, Engine, shannon
from server.scrub.rules import Rule, load
from tests.pure.scrub_samples import ALNUM, HEX, SAMPLES, noise

SCRUBBER = Scrubber.load()
ENGINE = Engine(load(None))
PEM_BODY = "\n".join(noise(ALNUM, 64, seed) for seed in range(12))


@pytest.mark.parametrize(("rule_id", "text", "secret"), SAMPLES, ids=[one[0] for one in SAMPLES])
def test_each_kind_is_found_and_named(rule_id: str, text: str, secret: str) -> None:
    clean = SCRUBBER.scrub_text(f"before {text} after")
    assert secret not in clean
    assert f"[REDACTED:{rule_id}]" in clean
    assert clean.startswith("before ") or rule_id == "private-key-tail"
    assert clean.endswith(" after")
    assert SCRUBBER.scrub_text(clean) == clean


def test_every_rule_has_a_sample() -> None:
    assert {rule_id for rule_id, _, _ in SAMPLES} == set(SCRUBBER.rule_ids)
    assert len(SCRUBBER.rule_ids) >= 40


def test_every_own_rule_has_keywords_so_that_clean_requests_stay_cheap() -> None:
    for rule in load(None):
        assert rule.keywords, rule.id
        assert rule.description, rule.id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The quick brown fox jumps over the lazy dog.",
        "The key to success is a token of appreciation; keep it secret.",
        "password: required",
        "api_key = os.environ['API_KEY']",
        "token = get_token(request)",
        "https://example.com/a/b?page=2#top",
        "postgres://user:password@localhost/db",
        "postgres://user:${DB_PASSWORD}@localhost/db",
        "secret_name: my-database-credentials",
        "AKIAIOSFODNN7EXAMPLE",
        "commit 9fceb02d0ae598e95dc970b74767f19372d61af8",
        "uuid 550e8400-e29b-41d4-a716-446655440000",
        "the method sk-learn and hf_hub and npm_config",
        "Authorization: Bearer <your token here>",
        "password=changeme123",
        "api_key: your_api_key_goes_here_1",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "key-value pairs and pat-terns, cio, ey, sg., -us",
        "日本語のテキスト、キーとトークン 🔑",
    ],
)
def test_ordinary_text_is_the_same_object(text: str) -> None:
    assert SCRUBBER.scrub_text(text) is text


def test_a_private_key_goes_whole() -> None:
    text = f"a\n-----BEGIN OPENSSH PRIVATE KEY-----\n{PEM_BODY}\n-----END OPENSSH PRIVATE KEY-----\nb"
    assert SCRUBBER.scrub_text(text) == "a\n[REDACTED:private-key]\nb"


def test_two_private_keys_are_two_redactions() -> None:
    one = f"-----BEGIN PRIVATE KEY-----\n{PEM_BODY}\n-----END PRIVATE KEY-----"
    assert SCRUBBER.scrub_text(f"{one}\nand\n{one}") == "[REDACTED:private-key]\nand\n[REDACTED:private-key]"


def test_a_private_key_cut_by_a_chunker_is_found_from_either_side() -> None:
    whole = f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n{PEM_BODY}\n-----END RSA PRIVATE KEY-----"
    for cut in range(40, len(whole) - 40, 61):
        for piece in (whole[:cut], whole[cut:]):
            clean = SCRUBBER.scrub_text(piece)
            assert PEM_BODY[100:140] not in clean
            assert "PRIVATE KEY" not in clean


def test_a_private_key_with_escaped_line_ends_as_in_json() -> None:
    text = '"private_key": "-----BEGIN PRIVATE KEY-----\\n' + PEM_BODY.replace("\n", "\\n")
    for tail in ('\\n-----END PRIVATE KEY-----\\n"', ""):
        assert PEM_BODY[:30] not in SCRUBBER.scrub_text(text + tail)


def test_nothing_in_a_text_switches_it_off() -> None:
    secret = f"ghp_{noise(ALNUM, 36, 1)}"
    for switch in ("gitleaks:allow", "# gitleaks:allow", "noqa", "[REDACTED:github-token]", "[REDACTED:"):
        for text in (f"{secret} {switch}", f"{switch} {secret}", f"{switch}{secret}", f"[REDACTED:{secret}]"):
            assert secret not in SCRUBBER.scrub_text(text), text


def test_a_forged_redaction_inside_a_key_block_does_not_keep_the_rest() -> None:
    text = f"-----BEGIN PRIVATE KEY-----\n{PEM_BODY}[REDACTED:jwt]{PEM_BODY}\n-----END PRIVATE KEY-----"
    assert SCRUBBER.scrub_text(text) == "[REDACTED:private-key]"


def test_a_find_that_reaches_into_a_redaction_takes_it_along() -> None:
    engine = Engine([_rule(rb"ab.{3}")])
    assert engine.scrub("x ab[REDACTED:r] y") == ("x [REDACTED:r] y", 1)


def test_letters_that_fold_to_ascii_do_not_slip_past_the_prefilter() -> None:
    value = noise(ALNUM, 32, 3)
    for name in (
        "API_\N{KELVIN SIGN}EY",
        "\N{LATIN SMALL LETTER LONG S}ecret",
        "pa\N{LATIN SMALL LETTER LONG S}\N{LATIN SMALL LETTER LONG S}word",
    ):
        assert value not in SCRUBBER.scrub_text(f'{name} = "{value}"'), name


def test_the_name_of_a_value_is_its_context() -> None:
    value = noise(ALNUM, 32, 4)
    assert ENGINE.scrub(value) == (value, 0)
    assert ENGINE.scrub(value, "api_key") == ("[REDACTED:generic-api-key]", 1)
    assert ENGINE.scrub(value, "colour") == (value, 0)
    assert ENGINE.scrub("Tr0ub4dor&3!", "password") == ("[REDACTED:password-assignment]", 1)
    for name in ("api_key", "password"):
        clean, _ = ENGINE.scrub(value, name)
        assert ENGINE.scrub(clean, name) == (clean, 0)


def test_overlapping_finds_become_one() -> None:
    secret = f"sk-ant-api03-{noise(ALNUM, 90, 5)}"
    assert SCRUBBER.scrub_text(f'api_key = "{secret}"') == 'api_key = "[REDACTED:anthropic-api-key]"'


def test_entropy_is_that_of_gitleaks() -> None:
    assert shannon(b"") == 0.0
    assert shannon(b"aaaa") == 0.0
    assert shannon(b"abcd") == 2.0
    assert round(shannon(b"aab"), 6) == 0.918296


TEXTS = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(
            [
                "key=",
                "password: ",
                '"',
                "://",
                "@",
                ":",
                "token",
                "secret",
                "-----BEGIN PRIVATE KEY-----",
                "-----END",
                " PRIVATE KEY-----",
                "[REDACTED:jwt]",
                "[REDACTED:",
                "]",
                "\n",
                "bearer ",
                "ghp_",
                "eyJ",
                ".",
                "AKIA",
            ]
        ),
        st.text(alphabet=ALNUM, min_size=8, max_size=60),
        st.sampled_from([text for _, text, _ in SAMPLES]),
    ),
    max_size=8,
).map("".join)


@settings(deadline=None)
@given(TEXTS, st.sampled_from(["", "api_key", "password", "text", "token"]))
def test_scrubbing_again_changes_nothing(text: str, name: str) -> None:
    clean, count = ENGINE.scrub(text, name)
    assert (clean is text) == (count == 0)
    assert ENGINE.scrub(clean, name) == (clean, 0)


@settings(deadline=None)
@given(TEXTS, st.sampled_from(SAMPLES))
@example("PASSWORD:", ("password-assignment", 'PASSWORD = "Tr0ub4dor&36DSz"', "Tr0ub4dor&36DSz"))
def test_a_secret_is_found_wherever_it_stands(around: str, sample: tuple[str, str, str]) -> None:
    _, text, secret = sample
    assert secret not in SCRUBBER.scrub_text(f"{around}\n{text}\n{around}")


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), max_size=5), st.sampled_from(SAMPLES))
def test_the_gate_never_misses_a_string_inside_raw_bytes(around: list[str], sample: tuple[str, str, str]) -> None:
    body = b"\x0a\x07".join(part.encode("utf-8", "surrogatepass") for part in [*around, sample[1], *around])
    assert ENGINE.may_hold_secrets(body)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_the_gate_only_says_no_when_no_keyword_is_there(body: bytes) -> None:
    if not ENGINE.may_hold_secrets(body):
        folded = body.decode("utf-8", "replace").casefold()
        assert not any(word in folded for rule in ENGINE.rules for word in rule.keywords)


@settings(deadline=None)
@given(TEXTS)
def test_rules_that_match_anything_still_come_to_rest(text: str) -> None:
    for pattern in (rb".", rb"[\s\S]{3}", rb"\[", rb"D:", rb"[^\s]+", rb"\x{5b}R"):
        engine = Engine([_rule(pattern)])
        clean, _ = engine.scrub(text)
        assert engine.scrub(clean) == (clean, 0)


def test_what_never_comes_to_rest_is_redacted_whole() -> None:
    # In each pass one more character, found only because the one before it is redacted.
    engine = Engine([_rule(rb"^(?:\[REDACTED:r\])*([a-z])")])
    assert engine.scrub("abcdefghij")[0] == f"[REDACTED:{WHOLE}]"
    assert engine.scrub(f"[REDACTED:{WHOLE}]") == (f"[REDACTED:{WHOLE}]", 0)


def test_a_redaction_never_cuts_a_character() -> None:
    engine = Engine([_rule(rb"\C")])
    clean, _ = engine.scrub("äöü€🔑")
    assert clean.encode("utf-8").decode("utf-8") == clean


def test_lone_surrogates_survive() -> None:
    text = f"\ud800 {SAMPLES[0][1]} \udfff"
    clean = SCRUBBER.scrub_text(text)
    assert clean.startswith("\ud800 ") and clean.endswith(" \udfff") and SAMPLES[0][2] not in clean


@pytest.mark.parametrize(
    "piece",
    [
        "-----BEGIN RSA PRIVATE KEY-----\n", "-----END PRIVATE KEY-----", "eyJaaaaaaaaaaaaaaaaaaaaaa.",
        "key=a1b2c3d4e5f6g7h8 ", "a", "://a:", "password=", "postgres://a:b", "curl -u ", "ey", "AAAA\n", "a1b2.",
        'secret: "', "PuTTY-User-Key-File-2:", "bearer ", "$argon2id$v=19$", "[REDACTED:jwt]", "K", ";pwd=",
    ],
)  # fmt: skip
def test_hostile_text_is_done_with_at_all(piece: str) -> None:
    """400 KB of what makes a backtracking engine, or a quadratic scan, run for hours."""
    clean = SCRUBBER.scrub_text(piece * (400_000 // len(piece)))
    assert SCRUBBER.scrub_text(clean) == clean


def test_seeded_noise_of_any_length_is_linear_in_finds() -> None:
    chooser = random.Random(7)
    pieces = [
        chooser.choice(["api_key=", "token: ", " ", "\n"]) + noise(HEX + string.ascii_letters, 24, n)
        for n in range(2000)
    ]
    clean, count = ENGINE.scrub("".join(pieces))
    assert count > 0
    assert ENGINE.scrub(clean) == (clean, 0)


def _rule(pattern: bytes) -> Rule:
    import re2

    return Rule("r", re2.compile(pattern))
