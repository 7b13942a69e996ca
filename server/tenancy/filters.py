"""PURE. Filters that select points of one tenant and no others.

Promises: whatever a client's filter says, the result selects only points whose payload names the tenant. The client's
filter goes whole into one condition below `must`, so its `should`, `must_not` and `min_should` keep their meaning and
cannot widen anything.
"""

from __future__ import annotations

from collections.abc import Iterable

from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common


def is_tenant(key: str, tenant: str) -> common.Condition:
    """The condition that a point belongs to the tenant."""
    return common.Condition(field=common.FieldCondition(key=key, match=common.Match(keyword=tenant)))


def narrow(target: common.Filter, condition: common.Condition) -> None:
    """Change a filter in place so that `condition` must hold too."""
    wanted = common.Filter()
    wanted.must.append(condition)
    if target.ByteSize():
        wanted.must.add().filter.CopyFrom(target)
    target.CopyFrom(wanted)


def of_ids(ids: Iterable[common.PointId], condition: common.Condition) -> common.Filter:
    """The points with these ids for which `condition` holds."""
    wanted = common.Filter()
    wanted.must.append(condition)
    # Set even when there are no ids: a condition without content would hold for every point.
    wanted.must.add().has_id.SetInParent()
    wanted.must[1].has_id.has_id.extend(ids)
    return wanted


def not_of_tenant(ids: Iterable[common.PointId], condition: common.Condition) -> common.Filter:
    """The points with these ids for which `condition` does not hold."""
    wanted = common.Filter()
    wanted.must.add().has_id.SetInParent()
    wanted.must[0].has_id.has_id.extend(ids)
    wanted.must_not.append(condition)
    return wanted


def narrow_selector(selector: points.PointsSelector, condition: common.Condition) -> bool:
    """Change a selector in place to points of the tenant; False when it selects nothing in particular."""
    form = selector.WhichOneof("points_selector_one_of")
    if form == "filter":
        narrow(selector.filter, condition)
        return True
    if form == "points":
        wanted = of_ids(selector.points.ids, condition)
        selector.filter.CopyFrom(wanted)
        return True
    return False
