"""The same rules and texts through gitleaks itself: what it finds, we redact; what it leaves alone, so do we.

Runs when GITLEAKS_BIN is a gitleaks program and GITLEAKS_CONFIG a rules file, for instance its own
`config/gitleaks.toml` from the Go module cache:
`go install github.com/zricethezav/gitleaks/v8@v8.28.0`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from server.scrub.engine import Engine
from server.scrub.rules import load
from tests.pure.scrub_samples import ALNUM, SAMPLES, noise

BINARY, CONFIG = os.environ.get("GITLEAKS_BIN"), os.environ.get("GITLEAKS_CONFIG")
pytestmark = pytest.mark.skipif(not (BINARY and CONFIG), reason="GITLEAKS_BIN and GITLEAKS_CONFIG are not set")

WORDS = [
    "key",
    "token =",
    "secret:",
    "password =",
    "api_key=",
    "client_secret =>",
    "auth",
    "heroku",
    "url",
    "# note",
    ";",
]


def texts() -> list[str]:
    """Samples alone, and mixed with noise and words."""
    found = [text for _, text, _ in SAMPLES]
    for number in range(400):
        word = WORDS[number % len(WORDS)]
        found.append(f'{word} "{noise(ALNUM, 8 + number % 60, number)}"')
        found.append(f"the {word} {noise('abcdef0123456789', 32, number)} and more")
        found.append(f"{SAMPLES[number % len(SAMPLES)][1]} {word} {SAMPLES[(number * 7) % len(SAMPLES)][1]}")
    return found


def test_as_gitleaks_finds(tmp_path: Path) -> None:
    assert BINARY is not None and CONFIG is not None
    source = tmp_path / "texts"
    source.mkdir()
    cases = texts()
    for number, text in enumerate(cases):
        (source / f"{number:05}").write_text(text, encoding="utf-8")
    report = tmp_path / "report.json"
    subprocess.run(
        [BINARY, "dir", str(source), "-c", CONFIG, "-f", "json", "-r", str(report), "--exit-code", "0", "--no-banner",
         "--max-decode-depth", "0"],
        check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    findings: dict[int, list[dict[str, str]]] = {}
    for finding in json.loads(report.read_text(encoding="utf-8")):
        findings.setdefault(int(Path(finding["File"]).name), []).append(finding)
    own = {rule.id for rule in load(None)}
    theirs = list(load(Path(CONFIG))[len(own) :])
    engine = Engine(theirs)
    # Rules that gitleaks runs on certain files only run on every text here.
    with_path = {"hashicorp-tf-password", "nuget-config-password", "kubernetes-secret-yaml", "freemius-secret-key"}
    missed, extra = [], []
    for number, text in enumerate(cases):
        clean, count = engine.scrub(text)
        found = findings.get(number, [])
        # A secret that stands there twice may be in the place of a rule only once.
        once = [one for one in found if text.count(one["Secret"]) == 1]
        missed += [(text, one["RuleID"], one["Secret"], clean) for one in once if one["Secret"] in clean]
        if count and not found and not any(f"[REDACTED:{rule}]" in clean for rule in with_path):
            extra.append((text, clean))
    assert len(findings) > 200
    assert not missed, missed[:3]
    assert not extra, extra[:3]
