"""Scores by formula: arithmetic over prefetch scores, payload numbers, conditions, places and times.

Promises: Qdrant's evaluation in double precision, results as float32; a formula that Qdrant refuses is refused before
any point is scored; a point for which it has no value or no finite result fails the whole query, as in Qdrant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import json_with_int_pb2 as json_pb2
from generated.qdrant import points_pb2 as points
from server.replica import paths, scalars
from server.replica.fields import Fields, Index
from server.replica.filters import Point, compile_condition
from server.replica.paths import Payload
from server.replica.ranking import by_score
from server.replica.records import Key
from server.replica.refusal import Refusal, invalid, wrong_input
from server.replica.scoring import Scored
from server.replica.session import Session

_MIDPOINT = 0.5
_SCALE = 1.0
_TARGET = 0.0
_PAGE = 1000
_SCORE = "$score"


@dataclass(frozen=True, slots=True)
class Row:
    """One point while it is scored."""

    payload: Payload
    point: Point
    scores: Sequence[Mapping[Key, float]]


Evaluate: TypeAlias = Callable[[Row], float]
Defaults: TypeAlias = Mapping[str, json_pb2.Value]


def rescore(session: Session, formula: points.Formula, sources: Sequence[Sequence[Scored]]) -> list[Scored]:
    """All points of the sources by their formula score, best first. Raises Refusal."""
    evaluate = Compiler(session.fields, _named(formula.defaults)).compile(formula.expression)
    scores = [dict(source) for source in sources]
    keys = list(dict.fromkeys(key for source in sources for key, _ in source))
    result: dict[Key, np.float32] = {}
    for start in range(0, len(keys), _PAGE):
        found = session.reads.fetch(session.collection.cid, keys[start : start + _PAGE])
        for key, record in found.items():
            payload = points.PointStruct.FromString(record.payload).payload
            value = evaluate(Row(payload, Point(key, record.vectors), scores))
            with np.errstate(over="ignore"):
                result[key] = np.float32(value)
            if not np.isfinite(result[key]):
                raise _not_finite(f"{value} as f32 = {result[key]}")
    return by_score(result)


def _named(defaults: Mapping[str, json_pb2.Value]) -> dict[str, json_pb2.Value]:
    """Defaults by the canonical name of their variable: `$score` is `$score[0]`."""
    named = {}
    for name, value in defaults.items():
        number = _score_number(name)
        named[name if number is None else f"{_SCORE}[{number}]"] = value
    return named


def _score_number(name: str) -> int | None:
    """Which prefetch a `$score` variable means; None for a payload path. Raises Refusal."""
    if not name.startswith(_SCORE):
        return None
    rest = name[len(_SCORE) :]
    if not rest:
        return 0
    inside = rest[1:-1]
    if not (rest.startswith("[") and rest.endswith("]") and inside.isascii() and inside.isdigit()):
        raise invalid(f"Invalid score pattern: {name}")
    return int(inside)


def _not_finite(expression: str) -> Refusal:
    return wrong_input(f"The expression {expression} produced a non-finite number")


def _expected(kind: str, name: str, why: str) -> Refusal:
    return wrong_input(f"Expected {kind} value for {name} in the payload and/or in the formula defaults. Error: {why}")


def _finite(compute: Callable[[], float], expression: Callable[[], str]) -> float:
    try:
        value = compute()
    except (ValueError, OverflowError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise _not_finite(expression())
    return value


class Compiler:
    """Turns expressions into functions. Raises Refusal for what Qdrant refuses."""

    def __init__(self, fields: Fields, defaults: Defaults) -> None:
        self._fields = fields
        self._defaults = defaults

    def compile(self, expression: points.Expression) -> Evaluate:  # noqa: PLR0912
        """One expression."""
        form = expression.WhichOneof("variant")
        match form:
            case "constant":
                constant = float(expression.constant)
                return lambda row: constant
            case "variable":
                return self._variable(expression.variable)
            case "condition":
                node = compile_condition(expression.condition, self._fields, "query.formula.condition")
                return lambda row: 1.0 if node.test(row.payload, row.point) else 0.0
            case "geo_distance":
                return self._geo_distance(expression.geo_distance)
            case "datetime":
                seconds = _seconds(expression.datetime)
                if seconds is None:
                    raise invalid(f"Expected datetime in supported format for {expression.datetime}")
                return lambda row: seconds
            case "datetime_key":
                return self._datetime_key(expression.datetime_key)
            case "mult":
                return _product(self._all(expression.mult.mult))
            case "sum":
                parts = self._all(expression.sum.sum)
                return lambda row: sum(part(row) for part in parts)
            case "max" | "min":
                return self._extreme(form, getattr(expression, form))
            case "div":
                return self._division(expression.div)
            case "pow":
                return self._power(expression.pow)
            case "exp_decay" | "gauss_decay" | "lin_decay":
                return self._decay(form, getattr(expression, form))
            case "neg" | "abs" | "sqrt" | "exp" | "log10" | "ln" | "acosh":
                return _function(form, self.compile(getattr(expression, form)))
            case _:
                raise invalid("Expression variant is missing")

    def _all(self, expressions: Sequence[points.Expression]) -> list[Evaluate]:
        return [self.compile(one) for one in expressions]

    def _extreme(self, form: str, expression: points.MaxExpression | points.MinExpression) -> Evaluate:
        parts = self._all(getattr(expression, form))
        if not parts:
            raise wrong_input(f"`{form}` needs at least one operand")
        choose = max if form == "max" else min
        return lambda row: choose(part(row) for part in parts)

    def _value(self, name: str) -> Callable[[Payload], json_pb2.Value | None]:
        """The one value at a path, else the default; None when there is none.

        Where the path has an index, Qdrant reads that: what it does not hold is not there. Texts it reads in the
        payload.
        """
        path = paths.parse_or_refuse(name)
        select = paths.selector(path)
        default = self._defaults.get(name)
        index = self._fields.index(path)
        held_by = None if index is None or index.kind == collections.Text else index
        is_open = held_by is None and path[-1] is paths.WILDCARD

        def value(payload: Payload) -> json_pb2.Value | None:
            found = select(payload) if is_open else paths.flattened(select(payload))
            if held_by is not None:
                found = _held(held_by, found)
            return found[0] if len(found) == 1 else default if not found else _several(found)

        return value

    def _variable(self, name: str) -> Evaluate:
        number = _score_number(name)
        if number is not None:
            return self._score(number)
        value = self._value(name)

        def evaluate(row: Row) -> float:
            found = value(row.payload)
            as_number = None if found is None else scalars.number(found)
            if found is None:
                raise _expected("number", name, "No value found in a payload nor defaults")
            if as_number is None:
                raise _expected("number", name, "Value is not a number")
            return as_number

        return evaluate

    def _score(self, number: int) -> Evaluate:
        default = self._defaults.get(f"{_SCORE}[{number}]")
        otherwise = (scalars.number(default) if default is not None else None) or 0.0

        def evaluate(row: Row) -> float:
            return row.scores[number].get(row.point.key, otherwise) if number < len(row.scores) else otherwise

        return evaluate

    def _geo_distance(self, expression: points.GeoDistance) -> Evaluate:
        origin = (expression.origin.lon, expression.origin.lat)
        value, name = self._value(expression.to), expression.to

        def evaluate(row: Row) -> float:
            found = value(row.payload)
            place = None if found is None else _place(found)
            if place is None:
                raise _expected("geo point", name, "No geo point found in a payload nor defaults")
            return scalars.metres_between(origin, place)

        return evaluate

    def _datetime_key(self, name: str) -> Evaluate:
        value = self._value(name)

        def evaluate(row: Row) -> float:
            found = value(row.payload)
            is_text = found is not None and found.WhichOneof("kind") == "string_value"
            seconds = _seconds(found.string_value) if found is not None and is_text else None
            if seconds is None:
                raise _expected("datetime", name, "No datetime found in a payload nor defaults")
            return seconds

        return evaluate

    def _division(self, expression: points.DivExpression) -> Evaluate:
        left, right = self.compile(expression.left), self.compile(expression.right)
        default = float(expression.by_zero_default) if expression.HasField("by_zero_default") else None

        def evaluate(row: Row) -> float:
            numerator = left(row)
            if numerator == 0:
                return numerator
            denominator = right(row)
            if denominator == 0 and default is not None:
                return default
            return _finite(lambda: numerator / denominator, lambda: f"{numerator}/{denominator}")

        return evaluate

    def _power(self, expression: points.PowExpression) -> Evaluate:
        base, exponent = self.compile(expression.base), self.compile(expression.exponent)

        def evaluate(row: Row) -> float:
            first, second = base(row), exponent(row)
            return _finite(lambda: math.pow(first, second), lambda: f"{first}^{second}")

        return evaluate

    def _decay(self, form: str, params: points.DecayParamsExpression) -> Evaluate:
        midpoint = params.midpoint if params.HasField("midpoint") else _MIDPOINT
        scale = params.scale if params.HasField("scale") else _SCALE
        if scale <= 0:
            raise wrong_input(f"Scale must be non-zero positive, got {scale}")
        if form == "lin_decay" and not 0 <= midpoint <= 1:
            raise wrong_input(f"Linear decay midpoint should be in the range [0.0, 1.0], got {midpoint}")
        if form != "lin_decay" and not 0 < midpoint < 1:
            raise wrong_input(f"Decay midpoint should be in the range (0.0, 1.0), got {midpoint}")
        x = self.compile(params.x)
        target = self.compile(params.target) if params.HasField("target") else lambda row: _TARGET
        if form == "lin_decay":
            slope = (1 - midpoint) / scale
            return lambda row: max(0.0, 1 - slope * abs(x(row) - target(row)))
        if form == "exp_decay":
            rate = math.log(midpoint) / scale
            return lambda row: math.exp(rate * abs(x(row) - target(row)))
        width = math.log(midpoint) / (scale * scale)
        return lambda row: math.exp(width * (x(row) - target(row)) ** 2)


def _held(index: Index, values: Sequence[json_pb2.Value]) -> list[json_pb2.Value]:
    """The values that an index holds of a point; one for exact values holds equal ones once."""
    pairs = [(held, value) for value in values if (held := index.held(value)) is not None]
    return list(dict(pairs).values()) if index.has_lookup else [value for _, value in pairs]


def _several(found: Sequence[json_pb2.Value]) -> json_pb2.Value:
    """Several values are a list, which is neither number nor place nor time."""
    return json_pb2.Value(list_value=json_pb2.ListValue(values=found))


def _place(value: json_pb2.Value) -> tuple[float, float] | None:
    """A place on the globe; to Qdrant's parser an array of longitude and latitude is one too."""
    place = scalars.place(value)
    items = value.list_value.values
    if place is None and len(items) == 2:
        lon, lat = map(scalars.number, items)
        place = (lon, lat) if lon is not None and lat is not None else None
    return place if place is not None and scalars.is_on_earth(*place) else None


def _seconds(text: str) -> float | None:
    moment = scalars.nanoseconds(text)
    return None if moment is None else moment // 1000 / 1e6


def _product(parts: Sequence[Evaluate]) -> Evaluate:
    def evaluate(row: Row) -> float:
        product = 1.0
        for part in parts:
            factor = part(row)
            if factor == 0:
                return factor
            product *= factor
        return product

    return evaluate


_FUNCTIONS: Mapping[str, tuple[Callable[[float], float], str]] = {
    "neg": (lambda x: -x, "-{}"),
    "abs": (abs, "|{}|"),
    "sqrt": (math.sqrt, "√{}"),
    "exp": (math.exp, "exp({})"),
    "log10": (math.log10, "log10({})"),
    "ln": (math.log, "ln({})"),
    "acosh": (math.acosh, "acosh({})"),
}


def _function(form: str, inner: Evaluate) -> Evaluate:
    function, text = _FUNCTIONS[form]

    def evaluate(row: Row) -> float:
        value = inner(row)
        return _finite(lambda: function(value), lambda: text.format(value))

    return evaluate
