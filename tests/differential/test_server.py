"""The replica beside a server over gRPC: Qdrant where QDRANT_BIN or QDRANT_URL names one, else the stand-in's process.

With a real server no row of `differences` holds: every outcome has to be the same as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.upstream.process import Standin

from .differences import DIFFERENCES
from .local_mode import LocalModeServer
from .running import Opening, Workload, attempt, report
from .server import Server
from .shapes import SHAPES, Shape

CALLS = 80
REAL_SEEDS = 20


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    """A server that runs."""
    with Standin(tmp_path_factory.mktemp("upstream")) as started:
        yield started


def opening(upstream: Standin) -> Opening:
    """Opens the server as an oracle."""
    if upstream.is_real:
        return lambda directory, mended: Server(upstream.address, "server")
    return lambda directory, mended: LocalModeServer(upstream.address, mended)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_every_outcome_is_the_same(upstream: Standin, shape: Shape) -> None:
    if not upstream.is_real and shape.not_for:
        pytest.skip(f"the stand-in {next(iter(shape.not_for.values()))}")
    open_oracle = opening(upstream)
    for seed in range(REAL_SEEDS if upstream.is_real else 1):
        made = Workload(shape, 1000 + seed, 250 if upstream.is_real else CALLS)
        found, tally = attempt(shape, made.calls(), open_oracle, DIFFERENCES)
        assert found is None, report(made, found, open_oracle)
        assert sum(tally.compared.values()) > CALLS * 0.9


def test_an_acknowledged_write_is_waited_for(upstream: Standin, tmp_path: Path) -> None:
    """Reads that follow a write without `wait` see it, also on a server that applies it later."""
    from generated.qdrant import points_pb2 as pb
    from server.rpc import COLLECTIONS, POINTS

    from .calls import Call
    from .shapes import BY_NAME, COLLECTION
    from .values import Values

    oracle = opening(upstream)(tmp_path, [])
    shape = BY_NAME["unnamed"]
    import random

    values = Values(shape, random.Random(1))
    oracle.answer(Call(COLLECTIONS + "Create", shape.create(COLLECTION)))
    upsert = pb.UpsertPoints(collection_name=COLLECTION, points=[values.point()], wait=False)
    assert oracle.answer(Call(POINTS + "Upsert", upsert)).result.status == pb.Acknowledged  # type: ignore[union-attr]
    count = oracle.answer(Call(POINTS + "Count", pb.CountPoints(collection_name=COLLECTION, exact=True)))
    assert count.result.count == 1  # type: ignore[union-attr]
    oracle.close()
