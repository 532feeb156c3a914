"""What a server that died leaves behind, and what the next one makes of it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pathlib
import signal
import socket
import sys

import pytest

from tests.integration.processes import place
from tms_server.backends.processes import layout, proc
from tms_server.model import errors, ids, resources
from tms_server.ports import backend

GROUP = ids.GroupId("g-1")
SERVER = """
import asyncio, pathlib, sys
from tests.integration.processes import place

async def main():
    site = place.Site(pathlib.Path(sys.argv[1]))
    runs = await site.open()
    await runs.launch(site.spec())
    await place.running(runs)
    if sys.argv[2] == "retiring":
        site.directory("g-1").joinpath("retiring").touch()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def die_after_launch(directory: pathlib.Path, how: str = "launched") -> None:
    """A server in a process of its own launches a group and is killed."""
    root = pathlib.Path(__file__).parents[3]
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(directory), how, stdout=asyncio.subprocess.PIPE, cwd=root
    )
    assert server.stdout is not None
    try:
        async with asyncio.timeout(place.BOUND_S):
            while (line := await server.stdout.readline()) != b"ready\n":
                assert line, "the server ended by itself"
    finally:
        server.kill()
        await server.wait()


async def test_a_killed_server_leaves_its_groups_to_the_next(site: place.Site, tmp_path: pathlib.Path) -> None:
    await die_after_launch(tmp_path)
    before = site.pid("worker"), site.pid("sidecar")
    assert site.lives("worker")
    assert site.lives("sidecar")
    runs = await site.open()
    await place.running(runs)
    assert (site.pid("worker"), site.pid("sidecar")) == before
    await runs.launch(site.spec())
    assert (site.pid("worker"), site.pid("sidecar")) == before
    # A death is told of processes, too, that are no children of this one.
    os.kill(before[0], signal.SIGKILL)
    await place.running(runs, restarts=1)
    assert site.pid("worker") != before[0]
    await runs.retire(GROUP)
    assert not site.lives("sidecar")


async def test_a_retirement_that_a_killed_server_began_is_finished(site: place.Site, tmp_path: pathlib.Path) -> None:
    await die_after_launch(tmp_path, "retiring")
    note = layout.read_note(site.directory("g-1"), "worker")
    assert note is not None
    assert place.is_alive(note.identity)
    runs = await site.open()
    assert await runs.observe() == ()
    assert not place.is_alive(note.identity)
    assert not site.directory("g-1").exists()


async def test_a_process_started_but_not_noted_never_runs_twice(site: place.Site) -> None:
    runs = await site.open()
    await runs.launch(site.spec())
    await place.running(runs)
    await runs.close()
    note = layout.read_note(site.directory("g-1"), "worker")
    assert note is not None
    (site.directory("g-1") / "worker.pid.json").unlink()
    runs = await site.open()
    await place.running(runs)
    assert not place.is_alive(note.identity)
    assert site.lives("worker")


async def test_a_reused_pid_is_never_mistaken(site: place.Site) -> None:
    innocent = await asyncio.create_subprocess_exec("/bin/sleep", "1000")
    runs = await site.open()
    await runs.launch(site.spec())
    await place.running(runs)
    await runs.close()
    site.kill("worker")
    note = layout.read_note(site.directory("g-1"), "worker")
    assert note is not None
    # The noted process was started before the one that has its number now.
    earlier = proc._start_ticks(innocent.pid) - 1
    identity = dataclasses.replace(note.identity, pid=innocent.pid, start_ticks=earlier)
    layout.write_note(site.directory("g-1"), "worker", dataclasses.replace(note, identity=identity))
    runs = await site.open()
    await place.running(runs, restarts=1)
    await runs.retire(GROUP)
    assert innocent.returncode is None
    innocent.kill()
    assert await innocent.wait() == -signal.SIGKILL


def test_a_note_of_an_earlier_boot_names_nobody() -> None:
    mine = proc.Identity(os.getpid(), proc._start_ticks(os.getpid()), proc.boot_id())
    assert place.is_alive(mine)
    assert not place.is_alive(dataclasses.replace(mine, boot_id="an earlier one"))
    assert not place.is_alive(dataclasses.replace(mine, start_ticks=mine.start_ticks - 1))


async def test_what_was_half_made_or_half_removed_is_cleared_away(site: place.Site) -> None:
    groups = site.options.data_dir / "groups"
    for name in (".g-1.new", ".g-2.gone"):
        (groups / name / "models").mkdir(parents=True)
    (groups / "not a group").mkdir()
    runs = await site.open()
    assert await runs.observe() == ()
    assert [each.name for each in groups.iterdir()] == ["not a group"]
    await runs.launch(site.spec())
    await place.running(runs)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"worker": 1}', "\0"])
async def test_a_group_whose_spec_is_lost_is_ended(site: place.Site, text: str) -> None:
    runs = await site.open()
    await runs.launch(site.spec())
    await place.running(runs)
    await runs.close()
    note = layout.read_note(site.directory("g-1"), "worker")
    assert note is not None
    (site.directory("g-1") / "spec.json").write_text(text)
    runs = await site.open()
    assert await runs.observe() == ()
    assert not place.is_alive(note.identity)
    assert not site.directory("g-1").exists()


async def test_stopping_at_exit_leaves_no_process_but_the_group(site: place.Site) -> None:
    site.set(stop_at_exit=True)
    runs = await site.open()
    await runs.launch(site.spec())
    await place.running(runs)
    await runs.close()
    assert not site.lives("worker")
    assert not site.lives("sidecar")
    with pytest.raises(errors.Unavailable, match="closed"):
        await runs.launch(site.spec())
    runs = await site.open()
    # Its models are lost, which a restart says.
    await place.running(runs, restarts=1)


async def test_a_sidecar_is_started_anew_for_a_new_server_address(site: place.Site) -> None:
    site.set(sidecar_command=("/bin/sh", "-c", "echo {server}; exec sleep 1000"))
    runs = await site.open()
    await runs.launch(site.spec())
    await place.running(runs)
    await runs.close()
    worker = site.pid("worker")
    site.set(server="127.0.0.1:2")
    runs = await site.open()
    await place.said(runs, "127.0.0.1:2", "sidecar")
    assert site.pid("worker") == worker


async def test_a_command_taken_off_the_list_is_not_started_again(site: place.Site) -> None:
    runs = await site.open()
    await runs.launch(dataclasses.replace(site.spec(), worker=resources.WorkerSpec(command="tms-worker")))
    await place.running(runs)
    await runs.close()
    site.set(commands={"other": place.SLEEP}, default_command="other")
    runs = await site.open()
    assert site.lives("worker")
    site.kill("worker")
    await place.until(
        runs, lambda each: "no longer allowed" in each.message and each.phase is backend.Phase.BACKING_OFF
    )


async def test_one_server_at_a_time(site: place.Site) -> None:
    first = await site.open()
    with pytest.raises(errors.FailedPrecondition, match="data_dir"):
        await site.open()
    await first.close()
    await site.open()


async def test_a_disk_that_refuses_is_unavailable_and_nothing_runs(site: place.Site) -> None:
    runs = await site.open()
    (site.options.data_dir / "groups").rmdir()
    (site.options.data_dir / "groups").write_text("in the way")
    with pytest.raises(errors.Unavailable, match="data directory"):
        await runs.launch(site.spec())
    assert await runs.observe() == ()
    (site.options.data_dir / "groups").unlink()
    (site.options.data_dir / "groups").mkdir()
    await runs.launch(site.spec())
    await place.running(runs)


async def test_an_address_where_somebody_listens_is_stepped_over(site: place.Site) -> None:
    runs = await site.open()
    first = runs.publish("lease/l-1", ())
    for option in (0, socket.SO_REUSEPORT):
        with socket.socket() as listener:
            if option:
                listener.setsockopt(socket.SOL_SOCKET, option, 1)
            listener.bind((first.host, first.grpc_port))
            listener.listen()
            assert runs.publish("lease/l-1", ()) != first
    assert runs.publish("lease/l-1", ()) == first
