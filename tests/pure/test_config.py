"""Settings: layers, sources, refusals, and what must never be shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from server.config import SEED_NAMES, Settings, environment_name, key_paths, load
from server.errors import ConfigError


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "understudy.yaml"
    path.write_text(text)
    return path


def test_defaults_stand_alone() -> None:
    loaded = load(None, {}, {})
    assert loaded.settings == Settings()
    assert set(loaded.sources.values()) == {"default"}
    assert set(loaded.sources) == {path for path, _ in key_paths()}


def test_each_layer_goes_over_the_one_before(tmp_path: Path) -> None:
    file = _file(tmp_path, "listen: 127.0.0.1:1\nwal:\n  entry_bytes: 11\nhealth:\n  fall: 7\n")
    environment = {"UNDERSTUDY_LISTEN": "127.0.0.1:2", "UNDERSTUDY_HEALTH_FALL": "8"}
    loaded = load(file, environment, {"listen": "127.0.0.1:3", "admin": None})
    assert (loaded.settings.listen, loaded.sources["listen"]) == ("127.0.0.1:3", "flag")
    assert (loaded.settings.health.fall, loaded.sources["health.fall"]) == (8, "environment UNDERSTUDY_HEALTH_FALL")
    assert (loaded.settings.wal.entry_bytes, loaded.sources["wal.entry_bytes"]) == (11, f"file {file}")
    assert (loaded.settings.admin, loaded.sources["admin"]) == ("127.0.0.1:6335", "default")


@pytest.mark.parametrize("path", [path for path, _ in key_paths()])
def test_every_key_has_a_variable_of_its_own(path: str) -> None:
    names = [environment_name(other) for other, _ in key_paths()]
    assert names.count(environment_name(path)) == 1
    assert environment_name(path).startswith("UNDERSTUDY_")


@pytest.mark.parametrize(("name", "path"), SEED_NAMES.items())
def test_the_seed_names_are_read(name: str, path: str) -> None:
    text = {"enabled": "false", "sync_on_connect": "false", "health_check_interval": "5s", "wal_retention_days": "3"}
    value = text.get(path.rpartition(".")[2], "/somewhere")
    loaded = load(None, {name: value}, {})
    assert loaded.sources[path] == f"environment {name}"


def test_our_own_name_wins_over_the_seed_name() -> None:
    path = "vectorstore.fallback.local_path"
    environment = {"CONTEXTD_FALLBACK_LOCAL_PATH": "/seed", environment_name(path): "/ours"}
    loaded = load(None, environment, {})
    assert loaded.settings.vectorstore.fallback.local_path == Path("/ours")
    assert loaded.sources[path] == f"environment {environment_name(path)}"


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30.0), ("500ms", 0.5), ("5m", 300.0), ("2h", 7200.0), ("7d", 604800.0), ("2.5", 2.5)]
)
def test_durations(text: str, seconds: float) -> None:
    loaded = load(None, {"UNDERSTUDY_VECTORSTORE_FALLBACK_HEALTH_CHECK_INTERVAL": text}, {})
    assert loaded.settings.vectorstore.fallback.health_check_interval == seconds


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("lissen: x", ["unknown", "lissen"]),
        ("wal:\n  entry_byte: 1", ["unknown", "wal.entry_byte"]),
        ("wal:\n  entry_bytes: 0", ["wal.entry_bytes", "1"]),
        ("wal:\n  entry_bytes: many", ["wal.entry_bytes"]),
        ("health:\n  backoff_max_seconds: 6", ["health.backoff_max_seconds", "5"]),
        ("vectorstore:\n  provider: other", ["vectorstore.provider"]),
        ("vectorstore:\n  fallback:\n    health_check_interval: soon", ["health_check_interval"]),
        ("replay:\n  quarantine_policy: forget", ["replay.quarantine_policy", "causal"]),
        ("- a\n- b", ["mapping"]),
        ("a: [", ["not YAML"]),
    ],
)
def test_a_bad_file_is_refused_by_key_and_place(tmp_path: Path, yaml: str, words: list[str]) -> None:
    file = _file(tmp_path, yaml)
    with pytest.raises(ConfigError) as caught:
        load(file, {}, {})
    for word in [*words, str(file)] if "[" not in words else words:
        assert word in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.yaml", {}, {})


def test_a_bad_variable_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match="UNDERSTUDY_WAL_ENTRY_BYTES"):
        load(None, {"UNDERSTUDY_WAL_ENTRY_BYTES": "-3"}, {})


def test_an_unknown_variable_is_none_of_our_business() -> None:
    assert load(None, {"UNDERSTUDY_CONFIG": "x", "UNDERSTUDY_SOMETHING": "y"}, {}).settings == Settings()


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    assert load(_file(tmp_path, ""), {}, {}).settings == Settings()


@pytest.mark.parametrize("word", ["off", "none", ""])
def test_the_admin_port_can_be_switched_off(word: str) -> None:
    assert load(None, {"UNDERSTUDY_ADMIN": word}, {}).settings.admin is None
    assert load(None, {}, {"admin": word}).settings.admin is None


def test_lists_come_from_the_environment_with_commas() -> None:
    assert load(None, {"UNDERSTUDY_HYDRATE_COLLECTIONS": "a,b"}, {}).settings.hydrate.collections == ("a", "b")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://chroma.example:8000/", "http://chroma.example:8000"),
        ("https://[::1]:443", "https://[::1]:443"),
        ("", None),
    ],
)
def test_a_chroma_server_is_host_and_port(given: str, kept: str | None) -> None:
    assert load(None, {"UNDERSTUDY_REPLICA_CHROMA": given}, {}).settings.replica.chroma == kept


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "chroma.example",
        "ftp://chroma.example:8000",
        "http://chroma.example",
        "http://chroma.example:port",
        "http://chroma.example:99999",
        "http://:8000",
        "http://sesame@chroma.example:8000",
        "http://user:sesame@chroma.example:8000",
        "http://chroma.example:8000/sesame",
        "http://chroma.example:8000?token=sesame",
        "http://chroma.example:8000#sesame",
    ],
)
def test_what_else_a_url_could_carry_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {"UNDERSTUDY_REPLICA_CHROMA": url}, {})
    said = str(caught.value)
    assert "replica.chroma" in said and "UNDERSTUDY_REPLICA_CHROMA" in said and "http://HOST:PORT" in said
    assert "sesame" not in said


def test_settings_are_frozen() -> None:
    settings: Any = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.listen = "elsewhere"


def test_secrets_do_not_show() -> None:
    environment = {"UNDERSTUDY_VECTORSTORE_API_KEY": "sesame-1", "UNDERSTUDY_KEYS_API_KEY": "sesame-2"}
    loaded = load(None, environment, {})
    assert isinstance(loaded.settings.keys.api_key, SecretStr)
    assert loaded.settings.keys.api_key.get_secret_value() == "sesame-2"
    assert "sesame" not in repr(loaded)
    assert "sesame" not in loaded.settings.model_dump_json()


def test_a_bad_secret_is_not_quoted() -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {}, {"keys.api_key": ["sesame"]})
    assert "sesame" not in str(caught.value)
