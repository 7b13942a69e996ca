"""What is compared in the other tests of this folder is compared as it says."""

from __future__ import annotations

from typing import Any

import pytest
from haystack.dataclasses import Document as HaystackDocument
from langchain_core.documents import Document as LangChainDocument
from llama_index.core.schema import TextNode
from qdrant_client import models

from .transcript import Transcript, differences, plain, raised


@pytest.mark.parametrize(
    ("wanted", "seen"),
    [
        (1, 1.0),
        (1, True),
        (None, []),
        (0.5, 0.5002),
        ("a", "b"),
        ([1, 2], [1, 3]),
        ([1, 2], [1]),
        ([1], [1, 2]),
        ({"a": 1}, {}),
        ({}, {"a": 1}),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}),
        (float("nan"), 0.0),
    ],
)
def test_a_difference_is_seen(wanted: Any, seen: Any) -> None:
    assert len(differences(wanted, seen)) == 1


def test_order_counts() -> None:
    assert differences([1, 2], [2, 1])


@pytest.mark.parametrize(
    ("wanted", "seen"),
    [(0.5, 0.50009), (float("nan"), float("nan")), ({"a": 1, "b": [None, "x"]}, {"b": [None, "x"], "a": 1}), ([], [])],
)
def test_what_is_the_same_has_none(wanted: Any, seen: Any) -> None:
    assert differences(wanted, seen) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LangChainDocument("x", metadata={"a": 1}), LangChainDocument("x", metadata={"a": 2})),
        (TextNode(id_="1", text="x", embedding=[1.0]), TextNode(id_="1", text="x", embedding=[2.0])),
        (HaystackDocument(id="1", content="x", score=0.5), HaystackDocument(id="1", content="x", score=0.6)),
        (models.UpdateStatus.COMPLETED, models.UpdateStatus.ACKNOWLEDGED),
        (models.ScoredPoint(id=1, version=0, score=1.0), models.ScoredPoint(id=1, version=0, score=2.0)),
    ],
)
def test_the_parts_of_each_packages_answers_count(one: Any, other: Any) -> None:
    assert differences(plain([one]), plain([one])) == []
    assert len(differences(plain([one]), plain([other]))) == 1


def test_an_answer_of_unknown_form_is_not_passed_over() -> None:
    with pytest.raises(TypeError):
        plain(object())


def test_causes_are_kept_and_addresses_are_not() -> None:
    try:
        try:
            raise KeyError("why")
        except KeyError as cause:
            raise ValueError('x debug_error_string = "ipv4:127.0.0.1:1"') from cause
    except ValueError as error:
        told = raised(error)
    assert told == {"type": "ValueError", "text": "x ", "cause": {"type": "KeyError", "text": "'why'"}}


@pytest.mark.parametrize("nothing", [None, [], {}, 0, False, {"documents": []}])
def test_an_empty_answer_is_said_to_be_one(nothing: Any) -> None:
    told = Transcript()
    with pytest.raises(AssertionError):
        told.say("a", nothing)
    told.say_nothing("a", nothing)
    with pytest.raises(AssertionError, match="two steps"):
        told.say_nothing("a", nothing)
    with pytest.raises(AssertionError):
        told.say_nothing("b", [1])


def test_a_call_that_should_be_refused_must_be() -> None:
    with pytest.raises(AssertionError, match="not refused"):
        Transcript().refused("a", lambda: 1)


def test_equal_scores_of_a_fusion_are_a_set() -> None:
    def fused(*pairs: tuple[str, float]) -> Any:
        told = Transcript()
        told.say_fused("a", pairs)
        return told.steps["a"]

    both = fused(("a", 0.5), ("b", 0.5), ("c", 0.25))
    assert both == fused(("b", 0.5), ("a", 0.5), ("d", 0.25))
    assert differences(both, fused(("a", 0.5), ("d", 0.5), ("c", 0.25)))
    assert differences(both, fused(("a", 0.5), ("b", 0.5), ("c", 0.3)))
    assert differences(both, fused(("a", 0.5), ("b", 0.5), ("c", 0.25), ("d", 0.25)))
