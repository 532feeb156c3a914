"""Changes of all kinds, and what a connection that keeps nothing would read afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt

from hypothesis import strategies as st

from tests.support import stores
from tms_server.model import ids, lease, resources
from tms_server.ports import store as port
from tms_server.store import postgres, sqlite, unit

NUMBERS = st.integers(1, 4)
KINDS = st.sampled_from(["add", "save", "end", "renew", "group", "drop", "name", "address", "forget"])
STEPS = st.lists(st.tuples(KINDS, NUMBERS), min_size=1, max_size=4)
LATER = stores.NOW + dt.timedelta(hours=1)


class GaveUp(Exception):
    """A unit of work that takes everything back."""


def everything(reader: port.Reader) -> tuple[object, ...]:
    tables = (reader.groups(), reader.assignments(), reader.names(), dict(reader.endpoints()), reader.pools())
    return reader.unended_leases(), *tables


def plainly(url: str) -> tuple[object, ...]:
    """The same over a connection of its own."""
    base = postgres.Database(postgres.parse(url)) if postgres.is_one(url) else None
    engine = base.reading_engine() if base is not None else sqlite.reading_engine(sqlite.parse(url))
    with engine.connect() as connection, connection.begin():
        return everything(unit.SqlReader(connection))


async def run(store: port.Store, steps: list[tuple[str, int]], *, gives_up: bool) -> tuple[object, ...]:
    """Answers what the unit of work itself saw last."""
    seen: list[tuple[object, ...]] = []

    def work(one: port.UnitOfWork) -> None:
        for kind, number in steps:
            _step(one, kind, number)
            seen.append(everything(one))
        if gives_up:
            raise GaveUp

    with contextlib.suppress(GaveUp):
        await store.write(work)
    return seen[-1]


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
