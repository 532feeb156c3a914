"""What was acknowledged survives a process that is killed without warning."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from tests.support import stores
from tms_server.ports import store as port

CHILD = "tests.integration.store.crash_child"
ROOT = pathlib.Path(__file__).parents[3]
EVERYTHING = 1_000_000


def _acknowledged_before_the_kill(url: str, first: int, at_least: int) -> set[int]:
    command = [sys.executable, "-m", CHILD, url, str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        numbers = {int(child.stdout.readline()) for _ in range(at_least)}
        child.kill()
        # Whole lines only: the last one may have been cut.
        numbers |= {int(line) for line in child.stdout if line.endswith("\n")}
    return numbers


@pytest.mark.slow  # Real processes write, are killed, and start again on what is left.
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_acknowledged_changes_survive_kills(
    database: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path
) -> None:
    url = stores.url_of(tmp_path / "tms.db") if database == "sqlite" else request.getfixturevalue("postgres_url")
    acknowledged: set[int] = set()
    for life, at_least in enumerate((1, 40, 150)):
        acknowledged |= _acknowledged_before_the_kill(url, life * EVERYTHING, at_least)
    store = await stores.open_store(url)

    def left(reader: port.Reader) -> dict[str, list[str]]:
        return {
            "leases": [each.id for each in reader.unended_leases()],
            "created": [each.lease_id for each in reader.changes(0, EVERYTHING) if each.type == "Created"],
            "saved": [each.lease_id for each in reader.changes(0, EVERYTHING) if each.type == "Changed"],
            "named": [each.lease_id for each in reader.names()],
        }

    found = await store.read(left)
    revisions = [event.revision for event in await store.read(lambda reader: reader.changes(0, EVERYTHING))]
    await store.close()
    expected = {stores.lease_id(number) for number in acknowledged}
    assert len(expected) >= 191
    for ids in found.values():
        assert len(ids) == len(set(ids))
        assert expected <= set(ids)
    assert sorted(found["created"]) == sorted(found["leases"])
    assert sorted(found["named"]) == sorted(found["saved"])
    assert revisions == list(range(1, len(revisions) + 1))
