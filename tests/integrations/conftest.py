"""Runs each way once, for all applications, when the first test asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable

# The packages read these when they are imported: nothing is to be sent anywhere.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
os.environ["LANGSMITH_TRACING"] = "false"

import pytest

from .haystack_app import Haystack
from .langchain_app import LangChain
from .llama_index_app import LlamaIndex
from .others_app import Others
from .ways import WAYS, Kinds, Told

KINDS: Kinds = (LangChain, LlamaIndex, Haystack, Others)


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Told]:
    """What the applications were told on a way."""
    known: dict[str, Told | Exception] = {}

    def run(way: str) -> Told | Exception:
        try:
            return WAYS[way](KINDS, tmp_path_factory.mktemp(way))
        except Exception as error:  # noqa: BLE001 - a way that ends early fails all its tests, and is gone only once
            return error

    def on(way: str) -> Told:
        if way not in known:
            known[way] = run(way)
        outcome = known[way]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return on
