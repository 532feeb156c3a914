"""What threads keep between transactions is what a connection that keeps nothing would read, whatever went before."""

from __future__ import annotations

import asyncio
import pathlib
import tempfile

import hypothesis
from hypothesis import strategies as st

from tests.integration.store import keeping
from tests.support import stores

UNITS = st.lists(st.tuples(keeping.STEPS, st.booleans()), max_size=12)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(UNITS)
def test_what_is_kept_is_what_is_stored(units: list[tuple[list[tuple[str, int]], bool]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(_compare(pathlib.Path(name) / "tms.db", units))


async def _compare(path: pathlib.Path, units: list[tuple[list[tuple[str, int]], bool]]) -> None:
    store = await stores.open_sqlite(path)
    try:
        for steps, gives_up in units:
            seen = await keeping.run(store, steps, gives_up=gives_up)
            plain = keeping.plainly(stores.url_of(path))
            assert await store.read(keeping.everything) == plain
            assert await store.write(keeping.everything) == plain
            assert gives_up or seen == plain
    finally:
        await store.close()
