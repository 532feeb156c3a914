from __future__ import annotations

import contextlib
import pathlib
from collections.abc import AsyncIterator

import pytest

from tests.support import middle
from tms_server import app as app_module
from tms_server.model import ids, pool, resources
from tms_server.store import store as sql
from tms_server.testing import clock as fake_clock


@pytest.fixture
async def world(tmp_path: pathlib.Path) -> AsyncIterator[middle.World]:
    """A world with the pool ``default`` of four workers of 2**30 bytes."""
    async with _world(tmp_path, routes=False) as made:
        yield made


@pytest.fixture
async def led(tmp_path: pathlib.Path) -> AsyncIterator[middle.World]:
    """The same on a backend that leads clients to workers itself and has replicas."""
    async with _world(tmp_path, routes=True) as made:
        yield made


@contextlib.asynccontextmanager
async def _world(tmp_path: pathlib.Path, *, routes: bool) -> AsyncIterator[middle.World]:
    clock = fake_clock.FakeClock()
    store = await sql.SqlStore.open(f"sqlite:///{tmp_path / 'tms.db'}", clock, app_module.RandomIds().installation)
    default = pool.Pool(
        namespace=ids.DEFAULT_NAMESPACE,
        name=ids.DEFAULT_POOL,
        spec=pool.PoolSpec(worker=resources.WorkerSpec(command="tms-worker")),
        created_at=clock.now(),
    )
    await store.write(lambda unit: unit.put_pool(default))
    made = middle.World(store, clock, routes=routes)
    yield made
    await made.fleet.settled()
    await store.close()
