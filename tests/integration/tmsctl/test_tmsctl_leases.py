"""The commands against the real server: what people type, what they read, which code the shell gets."""

from __future__ import annotations

import asyncio
import json
import pathlib
import signal
from typing import Any

import pytest

from tests.support import server as support
from tms_server.model import ids
from tmsctl import errors

TOO_BIG = "1000TiB"


async def active(tmsctl: Any, *options: str, name: str = "a") -> Any:
    """A lease that serves, as JSON."""
    model = f"{name}=model://shelf/{name}"
    done = await tmsctl("lease", "create", "--model", model, "--wait", *options, "-o", "json")
    assert done.code == 0, done.err
    return done.json()


async def test_a_lease_from_create_to_release(tmsctl: Any) -> None:
    made = await active(tmsctl, "--name", "digits", "--label", "team=vision", "--hold", "90s")
    assert made["state"] == "LEASE_STATE_ACTIVE"
    assert made["endpoint"]["http_port"] > 0
    assert made["times"]["hold"] == "90s"

    assert (await tmsctl("lease", "get", "digits", "-o", "name")).out == f"{made['id']}\n"
    assert f"{made['id']}  ACTIVE" in (await tmsctl("lease", "list")).out
    status = (await tmsctl("lease", "status", "digits")).out
    assert "team=vision" in status
    assert "READY" in status

    released = await tmsctl("lease", "release", "digits", "--message", "enough", "-o", "json")
    (ended,) = released.json()["leases"]
    assert ended["end"]["reason"] == "Released"
    assert ended["end"]["message"] == "enough"
    assert (await tmsctl("lease", "release", made["id"])).code == 0
    assert (await tmsctl("lease", "list", "-o", "name")).out == ""
    assert (await tmsctl("lease", "list", "--all", "-o", "name")).out == f"{made['id']}\n"

    events = (await tmsctl("lease", "events", made["id"], "-o", "json")).json()["events"]
    kinds = [event["type"] for event in events]
    assert kinds[0] == "Created"
    assert "Active" in kinds


async def test_waiting_shows_its_progress_on_stderr_only(tmsctl: Any) -> None:
    done = await tmsctl("lease", "create", "--model", "a=model://shelf/a", "--wait", "-o", "name")
    lease_id = done.out.strip()
    assert f"{lease_id} PENDING" in done.err
    assert f"{lease_id} ACTIVE" in done.err
    assert done.err.count(f"{lease_id} ACTIVE") == 1


async def test_a_file_makes_the_same_lease_as_options(tmsctl: Any, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "lease.yaml"
    file.write_text(
        "models: [{name: a, uri: 'model://shelf/a', bytes: 1MiB}]\ntimes: {window: 90s}\nlabels: {k: v}\npriority: 3\n"
    )
    made = (await tmsctl("lease", "create", "-f", str(file), "--priority", "4", "-o", "json")).json()
    assert made["models"][0]["declared_bytes"] == str(2**20)
    assert made["times"]["activity_window"] == "90s"
    assert (made["labels"], made["priority"]) == ({"k": "v"}, 4)


async def test_a_dry_run_stores_nothing(tmsctl: Any) -> None:
    done = await tmsctl("lease", "create", "--model", "a=model://shelf/a", "--dry-run")
    assert done.code == 0, done.err
    assert "dry run" in done.out
    assert (await tmsctl("lease", "list", "--all", "-o", "name")).out == ""


async def test_a_dry_run_of_what_can_never_fit_fails_as_the_lease_would(tmsctl: Any, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "lease.yaml"
    file.write_text("models: [{name: a, uri: 'model://shelf/a', bytes: 2GiB}]\n")
    done = await tmsctl("lease", "create", "-f", str(file), "--dry-run")
    assert done.code == 6
    assert "CannotFit" in done.out


async def test_an_interrupted_wait_says_which_lease_stays(tmsctl: Any, server: support.Running) -> None:
    server.shelf.silent = True
    process = await tmsctl.start("lease", "create", "--model", "a=model://shelf/a", "--wait", "-o", "name")
    assert process.stderr is not None
    async with asyncio.timeout(support.PATIENCE_S):
        await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = (await process.stderr.read()).decode()
        assert await process.wait() == 130
    (found,) = (await tmsctl("lease", "list", "-o", "name")).out.split()
    assert f"tmsctl lease release {found}" in said


async def test_the_same_request_id_answers_the_same_lease(tmsctl: Any) -> None:
    create = ("lease", "create", "--model", "a=model://shelf/a", "--request-id", "job-7", "-o", "name")
    first, second = [await tmsctl(*create) for _ in range(2)]
    assert first.out == second.out
    other = await tmsctl(*create, "--priority", "5")
    assert other.code == errors.Exit.EXISTS


async def test_renewing_moves_the_end(tmsctl: Any) -> None:
    made = await active(tmsctl, "--hold", "10s")
    renewed = (await tmsctl("lease", "renew", made["id"], "--for", "2h", "-o", "json")).json()
    assert float(renewed["expires"]["remaining"].rstrip("s")) > 7000
    kept = (await tmsctl("lease", "renew", made["id"], "--for", "1m", "-o", "json")).json()
    assert float(kept["expires"]["remaining"].rstrip("s")) > 7000
    cut = (await tmsctl("lease", "renew", made["id"], "--for", "1m", "--allow-shorten", "-o", "json")).json()
    assert float(cut["expires"]["remaining"].rstrip("s")) <= 60
    await tmsctl("lease", "release", made["id"])
    ended = await tmsctl("lease", "renew", made["id"])
    assert ended.code == errors.Exit.PRECONDITION
    assert ended.err.startswith("error: ")


async def test_leases_are_chosen_by_label_state_and_pool(tmsctl: Any, server: support.Running) -> None:
    first = await active(tmsctl, "--label", "k=1")
    server.advance(seconds=1)
    second = await active(tmsctl, "--label", "k=2")
    chosen = await tmsctl("lease", "list", "--label", "k=2", "--state", "active", "--pool", "default", "-o", "name")
    assert chosen.out == f"{second['id']}\n"
    assert (await tmsctl("lease", "list", "-o", "name")).out.split() == [second["id"], first["id"]]
    assert (await tmsctl("lease", "list", "--state", "expired", "-o", "name")).out == ""


async def test_many_leases_end_only_when_that_is_meant(tmsctl: Any) -> None:
    kept, *others = [await active(tmsctl, "--label", f"k={which}") for which in ("keep", "go", "go")]
    unasked = await tmsctl("lease", "release", "--all")
    assert unasked.code == errors.Exit.USAGE
    assert "--yes" in unasked.err
    gone = await tmsctl("lease", "release", "--label", "k=go", "--yes", "-o", "name")
    assert sorted(gone.out.split()) == sorted(lease["id"] for lease in others)
    assert (await tmsctl("lease", "list", "--state", "active", "-o", "name")).out.split() == [kept["id"]]


async def test_one_lease_that_is_not_there_does_not_keep_the_others(tmsctl: Any) -> None:
    made = await active(tmsctl)
    done = await tmsctl("lease", "release", "l-nowhere", made["id"], "-o", "name")
    assert done.code == errors.Exit.NOT_FOUND
    assert done.out == f"{made['id']}\n"
    assert "l-nowhere" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["get", "l-nowhere"], errors.Exit.NOT_FOUND, "l-nowhere"),
        (["create", "-m", "a=model://nowhere/a"], errors.Exit.NOT_FOUND, "nowhere"),
        (["create", "-m", "a=model://shelf/a", "--pool", "nowhere"], errors.Exit.NOT_FOUND, "nowhere"),
        (["create", "-m", "a!=model://shelf/a"], errors.Exit.INVALID, "error: models[0].name: "),
        (["create", "-m", "a=model://shelf/a", "--priority", "9999"], errors.Exit.INVALID, "error: priority: "),
        (["create", "-m", "a=model://shelf/a", "--dedicated", "--image", "x/y"], errors.Exit.UNIMPLEMENTED, "image"),
    ],
)
async def test_a_refusal_names_its_cause_and_has_its_own_code(
    tmsctl: Any, arguments: list[str], code: errors.Exit, said: str
) -> None:
    done = await tmsctl("lease", *arguments)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert "Traceback" not in done.err


async def test_what_can_never_fit_fails_with_a_code_of_its_own(tmsctl: Any) -> None:
    model = f"a=model://shelf/a,bytes={TOO_BIG}"
    done = await tmsctl("lease", "create", "--model", model, "--wait")
    assert (done.code, done.out) == (errors.Exit.NO_CAPACITY, "")
    assert "CannotFit" in done.err


async def test_giving_up_waiting_leaves_the_lease_waiting(tmsctl: Any, full_pool: str) -> None:
    create = ("lease", "create", "--pool", full_pool, "--model", "a=model://shelf/a,bytes=1MiB", "--name", "patient")
    waiting = await tmsctl(*create, "--wait", "--wait-timeout", "1s")
    assert (waiting.code, waiting.out) == (errors.Exit.NO_CAPACITY, "")
    assert "error: --wait-timeout: " in waiting.err
    assert (await tmsctl("lease", "get", "patient", "-o", "json")).json()["state"] == "LEASE_STATE_PENDING"
    explained = await tmsctl("lease", "explain", "patient")
    assert explained.code == 0
    assert "Exclusive" in explained.out


async def test_names_point_at_leases_and_can_be_pointed_elsewhere(tmsctl: Any) -> None:
    first, second = await active(tmsctl), await active(tmsctl)
    for lease in (first, second):
        assert (await tmsctl("lease", "name", "set", "prod", lease["id"])).code == 0
    (name,) = (await tmsctl("lease", "name", "list", "-o", "json")).json()["names"]
    assert (name["name"], name["lease_id"]) == ("prod", second["id"])
    assert (await tmsctl("lease", "name", "delete", "prod")).out == "prod is deleted\n"
    assert (await tmsctl("lease", "name", "delete", "prod")).code == errors.Exit.NOT_FOUND


async def test_pools_are_made_shown_and_deleted(tmsctl: Any) -> None:
    create = ("pool", "create", "small", "--command", "tms-worker", "--memory", "512MiB", "--max-workers", "2")
    made = (await tmsctl(*create, "-o", "json")).json()
    assert made["spec"]["worker"]["resources"]["memory_bytes"] == str(512 * 2**20)
    assert (await tmsctl(*create, "-o", "name")).out == "small\n"
    assert (await tmsctl(*create[:-1], "3")).code == errors.Exit.EXISTS
    assert "small" in (await tmsctl("pool", "list", "-o", "name")).out.split()
    assert "512 MiB" in (await tmsctl("pool", "get", "small")).out

    await active(tmsctl, "--pool", "small")
    assert (await tmsctl("pool", "delete", "small")).code == errors.Exit.PRECONDITION
    assert (await tmsctl("pool", "delete", "small", "--revoke-leases")).code == 0
    assert (await tmsctl("pool", "get", "small")).code == errors.Exit.NOT_FOUND


async def test_workers_are_listed_with_what_they_hold(tmsctl: Any) -> None:
    made = await active(tmsctl)
    (worker,) = (await tmsctl("worker", "list", "--pool", "default", "-o", "json")).json()["workers"]
    assert worker["lease_ids"] == [made["id"]]
    assert worker["id"] in (await tmsctl("worker", "list")).out


async def test_watching_prints_an_object_a_line_until_the_lease_has_ended(tmsctl: Any) -> None:
    made = await active(tmsctl)
    process = await tmsctl.start("lease", "watch", made["id"], "-o", "json")
    async with asyncio.timeout(60):
        first = json.loads(await process.stdout.readline())
        assert first["lease"]["state"] == "LEASE_STATE_ACTIVE"
        await tmsctl("lease", "release", made["id"])
        rest = [json.loads(line) async for line in process.stdout]
        assert await process.wait() == 0
    assert rest[-1]["lease"]["state"] == "LEASE_STATE_RELEASED"
    revisions = [int(update["revision"]) for update in [first, *rest]]
    assert revisions == sorted(revisions)


async def test_namespaces_do_not_see_each_other(tmsctl: Any) -> None:
    await active(tmsctl)
    assert (await tmsctl("lease", "list", "--namespace", "other", "-o", "name")).out == ""


async def test_the_shell_completes_leases(tmsctl: Any) -> None:
    made = await active(tmsctl, "--name", "digits")
    words = {"_TMSCTL_COMPLETE": "complete_bash", "COMP_WORDS": "tmsctl lease get ", "COMP_CWORD": "3"}
    tmsctl.environment |= words
    offered = (await tmsctl()).out.split()
    assert {made["id"], "digits"} <= set(offered)


async def test_the_workers_lines_are_printed_and_cannot_steer_the_terminal(
    tmsctl: Any, server: support.Running
) -> None:
    made = await active(tmsctl)
    for text in ("first", "model a is \x1b[31mloaded"):
        server.backend.say(ids.GroupId(made["worker_group"]), "worker", text)
    done = await tmsctl("lease", "logs", made["id"], "--tail", "1")
    assert f"{made['worker_group']}/worker  model a is \\x1b[31mloaded" in done.out.splitlines()
    assert "first" not in done.out
