"""Make `docs/configuration.md` from `server/config.py`.

One command, `make docs`; with `--check` it writes nothing and fails when the page is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from server.config import SEED_NAMES, Seconds, Section, Settings, environment_name

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

HEAD = """\
# Configuration

Every key has a default. A YAML file (`understudy serve --config F`) goes over the defaults, the environment over the
file, and flags over the environment. `understudy config show` prints each value with the place it came from; secrets
are masked. An unknown key or a value out of range stops the start with one line that names key and place.

Durations are seconds, or a number with a unit: `500ms`, `30s`, `5m`, `2h`, `7d`. In the environment an empty variable
means "not set", and lists are separated by commas.

```yaml
listen: 127.0.0.1:6334
vectorstore:
  url: http://127.0.0.1:7334        # the real Qdrant's gRPC address
  fallback:
    local_path: .understudy/store
    wal_path: .understudy/wal
    health_check_interval: 30s
    sync_on_connect: true
    wal_retention_days: 7
```

This page is made from `server/config.py` by `make docs`.
"""

TAIL = """
## Other names

These names of the product Understudy grew out of are read too:

| variable | key |
|---|---|
"""

OTEL = """
## OpenTelemetry

Where spans and metrics go is set by the standard variables, not by keys here: `OTEL_EXPORTER_OTLP_ENDPOINT` (or
`…_TRACES_ENDPOINT`, `…_METRICS_ENDPOINT`), `OTEL_EXPORTER_OTLP_PROTOCOL` (`grpc`, the default, or `http/protobuf`),
`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_EXPORTER` and `OTEL_METRICS_EXPORTER` (`otlp`, `console`, `none`),
`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SDK_DISABLED`. With none of them set nothing leaves the process;
`/metrics` on the admin port is always there.
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, description, rows in _sections(Settings, ""):
        lines.append(f"\n## {title}\n\n{description}\n\n| key | default | what it is | variable |\n|---|---|---|---|")
        lines.extend(_row(path, field) for path, field in rows)
    seeds = [f"| `{name}` | `{path}` |" for name, path in SEED_NAMES.items()]
    return "\n".join(lines) + "\n" + TAIL + "\n".join(seeds) + "\n" + OTEL


def _sections(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, list[tuple[str, FieldInfo]]]]:
    plain = [(f"{prefix}{name}", field) for name, field in model.model_fields.items() if _section(field) is None]
    title = f"`{prefix.removesuffix('.')}`" if prefix else "Top level"
    yield title, (model.__doc__ or "").strip().splitlines()[0], plain
    for name, field in model.model_fields.items():
        section = _section(field)
        if section is not None:
            yield from _sections(section, f"{prefix}{name}.")


def _section(field: FieldInfo) -> type[Section] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _row(path: str, field: FieldInfo) -> str:
    choices = ""
    if isinstance(field.annotation, type) and issubclass(field.annotation, Enum):
        choices = f" ({', '.join(f'`{member.value}`' for member in field.annotation)})"
    return f"| `{path}` | {_shown(field)} | {field.description}{choices} | `{environment_name(path)}` |"


def _shown(field: FieldInfo) -> str:
    value: Any = field.default
    if value is None or value == ():
        return "none"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, SecretStr):
        value = "********"
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    unit = "s" if _is_duration(field) and value else ""
    return f"`{value}{unit}`"


def _is_duration(field: FieldInfo) -> bool:
    return any(part in field.metadata for part in Seconds.__metadata__[:1])


def main() -> None:
    """Write the page, or check it with `--check`."""
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text() != page():
            raise SystemExit("docs/configuration.md is stale, run `make docs`")
        print("docs/configuration.md is fresh")
    else:
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
