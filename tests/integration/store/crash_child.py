"""Adds leases with names from several tasks for as long as it lives, and prints each number once it is acknowledged."""

from __future__ import annotations

import asyncio
import functools
import itertools
import sys

from tests.support import stores
from tms_server.ports import store as port


async def main(url: str, first: int) -> None:
    store = await stores.open_store(url)
    numbers = itertools.count(first)

    async def client() -> None:
        for number in numbers:
            await stores.add(store, stores.new_lease(number))
            await store.write(functools.partial(_save, number=number))
            print(number, flush=True)  # noqa: T201 - this is the acknowledgement

    await asyncio.gather(*(client() for _ in range(8)))


def _save(unit: port.UnitOfWork, number: int) -> None:
    stored = unit.get_lease(stores.lease_id(number))
    assert stored is not None
    unit.save_lease(stored)
    unit.set_name(stores.binding(f"name-{number}", number))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
