"""Starting, restarting and stopping pairs of real processes."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import pathlib

import pytest
import uvloop

from tests.integration.processes import place
from tms_server.backends.processes import options, proc
from tms_server.model import errors, ids, resources
from tms_server.ports import backend
from tms_server.testing import clock as fake_clock

GROUP = ids.GroupId("g-1")
# Ignores the polite request, and has a child in its session.
STUBBORN = "trap '' TERM; sleep 1000 & echo started; wait"


def marked(site: place.Site, role: str, group_id: str = "g-1") -> list[int]:
    """Every living process of a role, noted or not."""
    found = list(proc._marked(f"{site.directory(group_id)}:{role}"))
    for _pid, pidfd in found:
        os.close(pidfd)
    return [pid for pid, _pidfd in found]


async def test_each_of_a_pair_is_restarted_by_itself(site: place.Site) -> None:
    runs = await site.open()
    await runs.launch(site.spec())
    await place.running(runs)
    sidecar = site.pid("sidecar")
    site.kill("worker")
    await place.running(runs, restarts=1)
    assert site.pid("sidecar") == sidecar
    worker = site.pid("worker")
    site.kill("sidecar")
    await place.until(runs, lambda each: "sidecar: killed by signal 9" in each.message)
    await place.running(runs)
    assert site.pid("worker") == worker
    (observed,) = await runs.observe()
    assert observed.restarts == 1
    assert "worker: killed by signal 9" in observed.message


async def test_pauses_grow_and_a_stable_run_makes_them_short_again(site: place.Site) -> None:
    clock = fake_clock.FakeClock()
    site.clock = clock
    backoff = options.Backoff(
        first=dt.timedelta(seconds=1), longest=dt.timedelta(seconds=3), stable=dt.timedelta(minutes=1)
    )
    site.set(backoff=backoff)
    runs = await site.open()
    await runs.launch(site.spec())
    await place.running(runs)
    for restarts, pause_s in enumerate((1, 2, 3, 3)):
        site.kill()
        await place.until(runs, lambda each: each.phase is backend.Phase.BACKING_OFF)
        clock.advance(dt.timedelta(seconds=pause_s) - dt.timedelta(microseconds=1))
        assert (await runs.observe())[0].phase is backend.Phase.BACKING_OFF
        clock.advance(dt.timedelta(microseconds=1))
        await place.running(runs, restarts=restarts + 1)
    clock.advance(dt.timedelta(minutes=1))
    site.kill()
    await place.until(runs, lambda each: "started again after 1 s" in each.message)


async def test_what_cannot_be_started_is_tried_again_and_says_why(site: place.Site, tmp_path: pathlib.Path) -> None:
    program = tmp_path / "program"
    site.set(commands={"tms-worker": (str(program),)})
    runs = await site.open()
    await runs.launch(site.spec())
    await place.until(runs, lambda each: "worker: cannot be started: " in each.message and each.restarts > 1)
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    await place.running(runs)
    await runs.retire(GROUP)


async def test_retiring_kills_what_does_not_go_and_all_it_started(site: place.Site) -> None:
    site.worker(STUBBORN)
    site.set(stop_grace=dt.timedelta(milliseconds=50))
    runs = await site.open()
    await runs.launch(site.spec())
    await place.said(runs, "started")
    assert len(marked(site, "worker")) == 2
    await runs.retire(GROUP)
    assert marked(site, "worker") == []
    assert marked(site, "sidecar") == []
    assert not site.directory("g-1").exists()
    assert list((site.options.data_dir / "groups").iterdir()) == []


async def test_retiring_lets_the_worker_finish_after_the_sidecar(site: place.Site, tmp_path: pathlib.Path) -> None:
    order = tmp_path / "order"
    script = "trap 'echo {0} >> {1}; exit 0' TERM; echo started; sleep 1000 & wait"
    site.worker(script.format("worker", order))
    site.set(sidecar_command=("/bin/sh", "-c", script.format("sidecar", order)))
    runs = await site.open()
    await runs.launch(site.spec())
    await place.said(runs, "started")
    await place.said(runs, "started", "sidecar")
    await runs.retire(GROUP)
    assert order.read_text().split() == ["sidecar", "worker"]


async def test_a_group_in_its_pause_is_retired(site: place.Site) -> None:
    site.clock = fake_clock.FakeClock()
    site.worker("exit 7")
    runs = await site.open()
    await runs.launch(site.spec())
    await place.until(runs, lambda each: "worker: exit status 7" in each.message)
    await runs.retire(GROUP)
    assert await runs.observe() == ()


async def test_a_cancelled_retirement_is_finished_by_the_next_call(site: place.Site) -> None:
    site.worker(STUBBORN)
    site.set(stop_grace=dt.timedelta(milliseconds=50))
    runs = await site.open()
    await runs.launch(site.spec())
    await place.said(runs, "started")
    await place.running(runs)
    before = site.pid()
    retirement = asyncio.create_task(runs.retire(GROUP))
    await place.until(runs, lambda each: each.message == "stopping")
    retirement.cancel()
    await asyncio.wait([retirement])
    (observed,) = await runs.observe()
    assert observed.message == "stopping"
    await runs.launch(site.spec())
    await place.running(runs)
    assert site.pid() != before


async def test_a_cancelled_launch_can_be_repeated(site: place.Site) -> None:
    runs = await site.open()
    launch = asyncio.create_task(runs.launch(site.spec()))
    await place.until(runs, lambda each: each.phase is backend.Phase.STARTING)
    launch.cancel()
    await asyncio.wait([launch])
    await runs.launch(site.spec())
    await place.running(runs)
    assert len(marked(site, "worker")) == 1


async def test_programs_are_told_their_places_and_no_secret(site: place.Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    show = 'env; for each in "$@"; do echo "<$each>"; done; echo end; exec sleep 1000'
    worker = ("/bin/sh", "-c", show, "worker", "{host}", "{http_port}{grpc_port} {metrics_port}", "{unknown}", "$(id)")
    sidecar = ("/bin/sh", "-c", show, "sidecar", "{server}", "{worker_id}", "{token_file}", "{worker_endpoint}")
    site.set(
        commands={"tms-worker": worker},
        sidecar_command=sidecar,
        sidecar_tls=options.SidecarTls(ca=pathlib.Path("/ca"), certificate=pathlib.Path("/c"), key=pathlib.Path("/k")),
        environment={"OMP_NUM_THREADS": "1"},
    )
    runs = await site.open()
    await runs.launch(site.spec())
    told = await place.said(runs, "end")
    assert [each for each in told if each[0] == "<"] == ["<127.64.0.1>", "<80008001 8002>", "<{unknown}>", "<$(id)>"]
    assert {"CUDA_VISIBLE_DEVICES=", "OMP_NUM_THREADS=1"} <= set(told)
    told += await place.said(runs, "end", "sidecar")
    token = site.directory("g-1") / "token"
    assert {f"<{token}>", "<127.64.0.1:8000:8001:8002>", "<--server-ca=/ca>", "<--server-key=/k>"} <= set(told)
    assert token.read_text() == "the token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert not any("very secret" in line or "the token" in line for line in told)
    assert "the token" not in (site.directory("g-1") / "spec.json").read_text()


async def test_devices_are_held_by_one_worker_at_a_time(site: place.Site) -> None:
    site.worker("env; echo end; exec sleep 1000")
    site.set(gpus=("GPU-a", "GPU-b"))
    runs = await site.open()
    await asyncio.gather(runs.launch(site.spec("g-1", gpus=1)), runs.launch(site.spec("g-2", gpus=1)))
    seen = [line for group in ("g-1", "g-2") for line in await place.said(runs, "end", group_id=group)]
    assert {line for line in seen if line.startswith("CUDA")} == {
        "CUDA_VISIBLE_DEVICES=GPU-a",
        "CUDA_VISIBLE_DEVICES=GPU-b",
    }
    with pytest.raises(errors.ResourceExhausted, match="gpus"):
        await runs.launch(site.spec("g-3", gpus=1))
    await runs.close()
    runs = await site.open()
    with pytest.raises(errors.ResourceExhausted, match="gpus"):
        await runs.launch(site.spec("g-3", gpus=1))
    await runs.retire(ids.GroupId("g-2"))
    await runs.launch(site.spec("g-3", gpus=1))
    assert "gpus" in (runs.refuse(resources.WorkerSpec(resources=resources.Resources(gpus=3))) or "")


@pytest.mark.parametrize("group_id", ["", ".", "..", "../g", "a/b", ".g-1.new", "a\nb", "x" * 101])
async def test_an_id_never_leads_out_of_the_directory(site: place.Site, group_id: str) -> None:
    runs = await site.open()
    with pytest.raises(errors.InvalidField, match="group_id"):
        await runs.launch(site.spec(group_id))
    await runs.retire(ids.GroupId(group_id))
    assert await runs.observe() == ()


async def test_logs_are_turned_over_when_they_grow_too_big(site: place.Site) -> None:
    clock = fake_clock.FakeClock()
    site.clock = clock
    site.worker("echo first; read -r line < {model_repository}/gate; echo $line; exec sleep 1000")
    site.set(log_bytes=4)
    runs = await site.open()
    await runs.launch(site.spec())
    log = site.directory("g-1") / "worker.log"
    gate = site.directory("g-1") / "models" / "gate"
    os.mkfifo(gate)

    def grown() -> bool:
        return log.exists() and log.stat().st_size > 0

    await place.eventually(grown)
    clock.advance(dt.timedelta(seconds=5))
    await place.eventually(lambda: not grown())
    await asyncio.to_thread(gate.write_text, "second\n")
    await place.eventually(grown)
    heard = [line.text async for line in runs.logs(GROUP, 10, follow=False) if line.source == "worker"]
    assert heard == ["first", "second"]


def test_pairs_run_on_uvloop_too(tmp_path: pathlib.Path) -> None:
    async def live() -> None:
        site = place.Site(tmp_path)
        runs = await site.open()
        await runs.launch(site.spec())
        await place.running(runs)
        site.kill()
        await place.running(runs, restarts=1)
        await runs.retire(GROUP)
        await site.clear()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live())
