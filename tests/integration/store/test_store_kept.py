"""What threads keep between transactions is what a connection that keeps nothing would read, whatever went before."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import pathlib
import tempfile

import hypothesis
from hypothesis import strategies as st

from tests.support import stores
from tms_server.model import ids, lease, resources
from tms_server.ports import store as port
from tms_server.store import sqlite, unit

NUMBERS = st.integers(1, 4)
KINDS = st.sampled_from(["add", "save", "end", "renew", "group", "drop", "name", "address", "forget"])
UNITS = st.lists(st.tuples(st.lists(st.tuples(KINDS, NUMBERS), min_size=1, max_size=4), st.booleans()), max_size=12)
LATER = stores.NOW + dt.timedelta(hours=1)


class GaveUp(Exception):
    """A unit of work that takes everything back."""


def _everything(reader: port.Reader) -> tuple[object, ...]:
    tables = (reader.groups(), reader.assignments(), reader.names(), dict(reader.endpoints()), reader.pools())
    return reader.unended_leases(), *tables


def _plainly(path: pathlib.Path) -> tuple[object, ...]:
    with sqlite.reading_engine(path).connect() as connection, connection.begin():
        return _everything(unit.SqlReader(connection))


def _step(work: port.UnitOfWork, kind: str, number: int) -> None:
    held = work.get_lease(stores.lease_id(number))
    match kind:
        case "add" if held is None:
            work.add_lease(stores.new_lease(number), "digest", stores.EVENT)
        case "save" if held is not None:
            work.save_lease(dataclasses.replace(held, generation=held.generation + 1))
        case "end" if held is not None and held.end is None:
            why = lease.LeaseEnd(state=lease.LeaseState.FAILED, reason="r", message="", actor="a", at=stores.NOW)
            work.save_lease(dataclasses.replace(held, state=why.state, end=why))
        case "renew" if held is not None:
            work.renew_lease(held.id, LATER + dt.timedelta(seconds=work.revision() + number), None)
        case "group":
            _group(work, number)
        case "drop":
            work.delete_assignment(stores.lease_id(number), ids.GroupId("g1"), 0)
        case "name" if held is not None:
            work.set_name(stores.binding("n", number))
        case "address":
            work.put_endpoint(f"lease/{stores.lease_id(number)}", resources.Endpoint("127.0.0.1", number, 2, 3))
        case "forget":
            work.forget_before(LATER)


def _group(work: port.UnitOfWork, number: int) -> None:
    before = work.get_group(ids.GroupId("g1"))
    generation = None if before is None else before.generation
    work.put_group(stores.new_group(generation=(generation or 0) + 1), generation)
    if work.get_lease(stores.lease_id(number)) is not None:
        work.put_assignment(stores.new_assignment(number))


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(UNITS)
def test_what_is_kept_is_what_is_stored(units: list[tuple[list[tuple[str, int]], bool]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(_compare(pathlib.Path(name) / "tms.db", units))


async def _compare(path: pathlib.Path, units: list[tuple[list[tuple[str, int]], bool]]) -> None:
    store = await stores.open_sqlite(path)
    try:
        for steps, gives_up in units:
            seen = await _run(store, steps, gives_up=gives_up)
            plain = _plainly(path)
            assert await store.read(_everything) == plain
            assert await store.write(_everything) == plain
            assert gives_up or seen == plain
    finally:
        await store.close()


async def _run(store: port.Store, steps: list[tuple[str, int]], *, gives_up: bool) -> tuple[object, ...]:
    """Answers what the unit of work itself saw last."""
    seen: list[tuple[object, ...]] = []

    def work(one: port.UnitOfWork) -> None:
        for kind, number in steps:
            _step(one, kind, number)
            seen.append(_everything(one))
        if gives_up:
            raise GaveUp

    with contextlib.suppress(GaveUp):
        await store.write(work)
    return seen[-1]
