"""What is read of one lease is the part of the whole that belongs to it."""

from __future__ import annotations

from tests.support import middle
from tms_server.model import ids


async def test_reads_of_one_are_parts_of_the_whole(world: middle.World) -> None:
    one, two = await world.active("one"), await world.active("two")
    for name, held in (("a", one), ("b", one), ("c", two)):
        await world.names.set(middle.CALLER, ids.DEFAULT_NAMESPACE, ids.LeaseName(name), held.lease.id)
    assert one.group_id is not None
    found = await world.stored(
        lambda reader: (
            [each.name for each in reader.names_of(one.lease.id)],
            reader.assignments(one.lease.id) == tuple(a for a in reader.assignments() if a.lease_id == one.lease.id),
            len(reader.assignments()),
            reader.get_endpoint(f"lease/{one.lease.id}") == reader.endpoints()[f"lease/{one.lease.id}"],
            reader.get_endpoint("lease/nobody"),
        )
    )
    assert found == (["a", "b"], True, 2, True, None)


async def test_a_lease_is_found_by_name_only_in_its_own_namespace(world: middle.World) -> None:
    made = await world.create()
    await world.names.set(middle.CALLER, ids.DEFAULT_NAMESPACE, ids.LeaseName("mine"), made.lease.id)
    assert (await world.get("mine")).lease.id == made.lease.id
    page = await world.names.list(middle.CALLER, ids.Namespace("other"))
    assert page == ()
