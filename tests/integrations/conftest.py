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
from .ways import WAYS, Kinds, Told

KINDS: Kinds = (LangChain, LlamaIndex, Haystack)


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Told]:
    """What the applications were told on a way."""
    known: dict[str, Told] = {}

    def on(way: str) -> Told:
        if way not in known:
            known[way] = WAYS[way](KINDS, tmp_path_factory.mktemp(way))
        return known[way]

    return on
