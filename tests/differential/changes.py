"""PURE. Random writes: every method of `qdrant.Points` and `qdrant.Collections` that changes something."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from server.rpc import COLLECTIONS, POINTS

from .calls import Call
from .shapes import COLLECTION, OTHER
from .values import PATHS, Values, as_payload, selector

ALIAS = "alias"
INDEXES = {
    "k": pb.FieldTypeKeyword,
    "n": pb.FieldTypeInteger,
    "f": pb.FieldTypeFloat,
    "when": pb.FieldTypeDatetime,
    "t": pb.FieldTypeText,
    "a": pb.FieldTypeKeyword,
    "b": pb.FieldTypeBool,
    "c": pb.FieldTypeUuid,
    "tags": pb.FieldTypeGeo,
    "o.x": pb.FieldTypeInteger,
    "l[].x": pb.FieldTypeKeyword,
}


class Changes:
    """Writes to one collection, now and then through its alias."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._chance: random.Random = values.chance

    def _name(self) -> str:
        return ALIAS if self._chance.random() < 0.05 else COLLECTION

    def _common(self) -> dict[str, Any]:
        common: dict[str, Any] = {"collection_name": self._name()}
        if self._chance.random() < 0.8:
            common["wait"] = self._chance.random() < 0.85
        if self._chance.random() < 0.1:
            common["ordering"] = pb.WriteOrdering(type=self._chance.choice((pb.Weak, pb.Medium, pb.Strong)))
        return common

    def _selector(self, by_filter: float = 0.25) -> pb.PointsSelector:
        if self._chance.random() < by_filter:
            return pb.PointsSelector(filter=self._values.filter())
        return selector(self._values.ids(4))

    def upsert(self) -> Call:
        """Points new and old; one id sometimes twice."""
        request = pb.UpsertPoints(
            **self._common(), points=[self._values.point() for _ in range(self._chance.randint(1, 5))]
        )
        self._condition(request)
        if self._chance.random() < 0.15:
            request.update_mode = self._chance.choice((pb.UpdateMode.InsertOnly, pb.UpdateMode.UpdateOnly))
        return Call(POINTS + "Upsert", request)

    def _condition(self, request: Any) -> None:
        if self._chance.random() < 0.1:
            request.update_filter.CopyFrom(self._values.filter())

    def delete(self) -> Call:
        """Few points, or those that a filter finds among a few."""
        selection = self._selector(0.1)
        if selection.HasField("filter"):
            selection.filter.must.add().has_id.has_id.extend(self._values.ids(6))
        return Call(POINTS + "Delete", pb.DeletePoints(**self._common(), points=selection))

    def update_vectors(self) -> Call:
        """New vectors for points, the others kept."""
        points = [pb.PointVectors(id=one, vectors=self._values.vectors(least=1)) for one in self._values.ids(3)]
        request = pb.UpdatePointVectors(**self._common(), points=points)
        self._condition(request)
        return Call(POINTS + "UpdateVectors", request)

    def delete_vectors(self) -> Call:
        """Take vectors away."""
        names = pb.VectorsSelector(names=[self._values.name()])
        request = pb.DeletePointVectors(**self._common(), points_selector=selector(self._values.ids(2)), vectors=names)
        return Call(POINTS + "DeleteVectors", request)

    def set_payload(self) -> Call:
        """Merge."""
        request = pb.SetPayloadPoints(
            **self._common(), payload=as_payload(self._some_payload()), points_selector=self._selector()
        )
        if self._chance.random() < 0.4:
            request.key = self._chance.choice(PATHS)
        return Call(POINTS + "SetPayload", request)

    def _some_payload(self) -> dict[str, Any]:
        made = self._values.payload()
        return {key: made[key] for key in self._chance.sample(sorted(made), min(2, len(made)))}

    def overwrite_payload(self) -> Call:
        """Replace."""
        request = pb.SetPayloadPoints(
            **self._common(), payload=as_payload(self._values.payload()), points_selector=self._selector(0.1)
        )
        return Call(POINTS + "OverwritePayload", request)

    def delete_payload(self) -> Call:
        """Take fields away."""
        keys = self._chance.sample(PATHS, 2)
        request = pb.DeletePayloadPoints(**self._common(), keys=keys, points_selector=self._selector())
        return Call(POINTS + "DeletePayload", request)

    def clear_payload(self) -> Call:
        """Take all fields away."""
        return Call(
            POINTS + "ClearPayload", pb.ClearPayloadPoints(**self._common(), points=selector(self._values.ids(2)))
        )

    def batch(self) -> Call:
        """Several writes in one."""
        request = pb.UpdateBatchPoints(**self._common())
        makers = {
            "upsert": self.upsert,
            "delete_points": self.delete,
            "set_payload": self.set_payload,
            "overwrite_payload": self.overwrite_payload,
            "delete_payload": self.delete_payload,
            "clear_payload": self.clear_payload,
            "update_vectors": self.update_vectors,
            "delete_vectors": self.delete_vectors,
        }
        for _ in range(self._chance.randint(1, 3)):
            kind = self._chance.choice(list(makers))
            part = getattr(request.operations.add(), kind)
            part.SetInParent()
            for descriptor, value in makers[kind]().request.ListFields():
                if descriptor.name in part.DESCRIPTOR.fields_by_name:
                    _copy(part, descriptor, value)
        return Call(POINTS + "UpdateBatch", request)

    def create_index(self) -> Call:
        """A payload index of the field's kind."""
        field = self._chance.choice(list(INDEXES))
        request = pb.CreateFieldIndexCollection(
            collection_name=COLLECTION, wait=True, field_name=field, field_type=INDEXES[field]
        )
        return Call(POINTS + "CreateFieldIndex", request)

    def delete_index(self) -> Call:
        """Take a payload index away."""
        field = self._chance.choice(list(INDEXES))
        request = pb.DeleteFieldIndexCollection(collection_name=COLLECTION, wait=True, field_name=field)
        return Call(POINTS + "DeleteFieldIndex", request)

    def create_vector_name(self) -> Call:
        """One more vector."""
        request = pb.CreateVectorNameRequest(collection_name=COLLECTION, wait=True, vector_name="more")
        if self._chance.random() < 0.5:
            request.sparse_config.SetInParent()
        else:
            request.dense_config.size, request.dense_config.distance = 3, collections.Dot
        return Call(POINTS + "CreateVectorName", request)

    def delete_vector_name(self) -> Call:
        """Take that vector away again."""
        request = pb.DeleteVectorNameRequest(collection_name=COLLECTION, wait=True, vector_name="more")
        return Call(POINTS + "DeleteVectorName", request)

    def aliases(self) -> Call:
        """Make, rename, drop an alias."""
        made = collections.AliasOperations(
            create_alias=collections.CreateAlias(collection_name=COLLECTION, alias_name=ALIAS)
        )
        renamed = collections.AliasOperations(
            rename_alias=collections.RenameAlias(old_alias_name=ALIAS, new_alias_name="former")
        )
        dropped = collections.AliasOperations(delete_alias=collections.DeleteAlias(alias_name=ALIAS))
        some = self._chance.choice(([made], [made], [made, renamed], [renamed], [dropped], [dropped, made]))
        return Call(COLLECTIONS + "UpdateAliases", collections.ChangeAliases(actions=some))

    def collection(self) -> Call:
        """Make, change, drop the collection that others are looked up in."""
        chance = self._chance
        kind = chance.random()
        if kind < 0.5:
            return Call(COLLECTIONS + "Create", self._values.shape.create(OTHER))
        if kind < 0.75:
            request = collections.UpdateCollection(collection_name=COLLECTION)
            request.optimizers_config.indexing_threshold = chance.randint(10_000, 30_000)
            return Call(COLLECTIONS + "Update", request)
        return Call(COLLECTIONS + "Delete", collections.DeleteCollection(collection_name=OTHER))

    def filled(self, name: str) -> list[Call]:
        """The calls that make a collection and fill it."""
        points = [self._values.point() for _ in range(30)]
        return [
            Call(COLLECTIONS + "Create", self._values.shape.create(name)),
            Call(POINTS + "Upsert", pb.UpsertPoints(collection_name=name, wait=True, points=points)),
        ]

    def any(self) -> Call:
        """One of these, points and payloads most of the time."""
        makers: list[tuple[Callable[[], Call], int]] = [
            (self.upsert, 14),
            (self.delete, 5),
            (self.update_vectors, 4),
            (self.delete_vectors, 3),
            (self.set_payload, 8),
            (self.overwrite_payload, 3),
            (self.delete_payload, 4),
            (self.clear_payload, 1),
            (self.batch, 5),
            (self.create_index, 3),
            (self.delete_index, 1),
            (self.create_vector_name, 1),
            (self.delete_vector_name, 1),
            (self.aliases, 2),
            (self.collection, 2),
        ]
        return self._chance.choices([maker for maker, _ in makers], [weight for _, weight in makers])[0]()


def _copy(target: Any, descriptor: Any, value: Any) -> None:
    if descriptor.is_repeated or descriptor.type == descriptor.TYPE_MESSAGE:
        getattr(target, descriptor.name).MergeFrom(value)
    else:
        setattr(target, descriptor.name, value)
