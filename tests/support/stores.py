"""Builders of stored values, and a store whose writer can be held."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import pathlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

from tms_server import clock
from tms_server.model import group, ids, lease, pool, resources
from tms_server.ports import store as port
from tms_server.store import store as sql
from tms_server.testing import clock as fake_clock

T = TypeVar("T")

NOW = fake_clock.START
NAMESPACE = ids.DEFAULT_NAMESPACE
PATIENCE_S = 30.0
EVENT = port.NewEvent(type="Created", message="by a test", actor="tester", at=NOW)


def url_of(path: pathlib.Path) -> str:
    return f"sqlite:///{path}"


async def open_sqlite(
    path: pathlib.Path, options: sql.Options | None = None, clock_: clock.Clock | None = None
) -> sql.SqlStore:
    return await open_store(url_of(path), options, clock_)


async def open_store(url: str, options: sql.Options | None = None, clock_: clock.Clock | None = None) -> sql.SqlStore:
    return await sql.SqlStore.open(
        url, clock_ or fake_clock.FakeClock(), lambda: ids.InstallationId("installation-1"), options
    )


def new_lease(number: int, namespace: str = NAMESPACE, **spec: Any) -> lease.Lease:
    """Lease ``l<number>``, made `number` seconds after NOW; `spec` replaces fields of its spec."""
    fields: dict[str, Any] = {
        "models": (lease.ModelReference(name="digits", uri="file:///models/digits"),),
        "placement": lease.InPool(ids.DEFAULT_POOL),
        **spec,
    }
    return lease.Lease(
        id=lease_id(number),
        namespace=ids.Namespace(namespace),
        spec=lease.LeaseSpec(**fields),
        request_id=f"request-{number}",
        actor="tester",
        state=lease.LeaseState.PENDING,
        created_at=NOW + dt.timedelta(seconds=number),
    )


def lease_id(number: int) -> ids.LeaseId:
    return ids.LeaseId(f"l{number:06}")


def new_group(name: str = "g1", generation: int = 1) -> group.WorkerGroup:
    return group.WorkerGroup(
        id=ids.GroupId(name),
        namespace=NAMESPACE,
        pool=ids.DEFAULT_POOL,
        spec=resources.WorkerSpec(command="tms-worker"),
        capacity_bytes=1 << 34,
        framework_class=None,
        phase=group.GroupPhase.RUNNING,
        generation=generation,
        token="secret",
        created_at=NOW,
    )


def new_assignment(number: int, group_name: str = "g1") -> group.Assignment:
    return group.Assignment(
        lease_id=lease_id(number),
        group_id=ids.GroupId(group_name),
        copy=0,
        generation=2,
        booked_bytes=1 << 40,
        assigned_at=NOW,
    )


def new_report(group_name: str = "g1", replica: str = "", epoch: int = 1) -> group.GroupReport:
    return group.GroupReport(
        group_id=ids.GroupId(group_name),
        replica=ids.ReplicaId(replica),
        incarnation="i",
        epoch=epoch,
        generation=1,
        server_ready=True,
        activity_known=True,
        received_at=NOW,
        endpoints=(resources.Endpoint("127.64.0.1", 1, 2, 3),),
    )


def new_pool(name: str = "default") -> pool.Pool:
    spec = pool.PoolSpec(worker=resources.WorkerSpec(image="worker:1"), max_workers=7)
    return pool.Pool(namespace=NAMESPACE, name=ids.PoolName(name), spec=spec, created_at=NOW)


def binding(name: str, number: int) -> lease.NameBinding:
    return lease.NameBinding(namespace=NAMESPACE, name=ids.LeaseName(name), lease_id=lease_id(number), changed_at=NOW)


async def add(store: port.Store, *new: lease.Lease) -> tuple[lease.Lease, ...]:
    """Stores the leases in one unit."""
    return await store.write(lambda unit: tuple(unit.add_lease(each, "digest", EVENT) for each in new))


async def for_each(store: port.Store, items: Iterable[T], change: Callable[[port.UnitOfWork, T], None]) -> None:
    """Makes one change with each item, in one unit."""

    def work(unit: port.UnitOfWork) -> None:
        for item in items:
            change(unit, item)

    await store.write(work)


@contextlib.asynccontextmanager
async def held_writer(store: port.Store) -> AsyncIterator[None]:
    """The writer is busy until the block ends; what is written meanwhile waits together."""
    begun, go_on = threading.Event(), threading.Event()

    def hold(_: port.UnitOfWork) -> None:
        begun.set()
        assert go_on.wait(PATIENCE_S)

    holding = asyncio.create_task(store.write(hold))
    assert await asyncio.to_thread(begun.wait, PATIENCE_S)
    try:
        yield
        await turn()
    finally:
        go_on.set()
        await holding


async def turn() -> None:
    """Lets every task that was made so far run until it waits."""
    done = asyncio.Event()
    asyncio.get_running_loop().call_soon(done.set)
    await done.wait()
