"""The main job on Kubernetes, end to end: ``make demo BACKEND=kubernetes``.

Installs the Helm chart into the cluster of $KUBECONFIG, leases a classifier with a worker of its own that may grow, loads
it with an unmodified client through the lease's Service, shows the HorizontalPodAutoscaler follow the load up and down
without a failed request, and takes everything away again.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import helm_python
import kubernetes
from rich import live
from rich.table import Table

from examples import shown
from examples.digits import train

CHART = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "helm" / "tms"
NAMESPACE = "tms-demo"
RATE, TARGET, MOST = 240.0, 100, 3
LOAD_S, SHRINK_S = 150, 150
"""The longest that the load lasts; it ends once the lease has had the size for so many looks."""
STEADY = 5
console = shown.console


def main() -> int:
    """Runs the demo; 0 when every step did what it should. Leaves nothing in the cluster, also after Ctrl-C."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--values", type=pathlib.Path, help="further values of the chart, as YAML")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with tempfile.TemporaryDirectory(prefix="tms-demo-") as scratch:
        try:
            _run(pathlib.Path(scratch), _read(options.values))
        except KeyboardInterrupt:
            console.print("\n[yellow]Interrupted; everything was stopped.[/]")
            return 130
    return 0


def _run(scratch: pathlib.Path, more: dict[str, Any]) -> None:
    begun = time.monotonic()
    kubernetes.config.load_kube_config()  # type: ignore[no-untyped-call]  # theirs
    shown.step("Train a classifier of handwritten digits into a model repository")
    with console.status("training and exporting to ONNX"):
        trained = train.train(scratch)
    shown.step("Install TMS with Helm: server, rights, certificates, metrics API")
    with _installed(trained.repository, more) as ctl, contextlib.ExitStack() as ends:
        lease = _lease(ctl)
        ends.callback(ctl.show, "lease", "release", "digits")
        _grow_and_shrink(ctl, lease)
        ctl.show("worker", "list", "--replicas")
    console.print(f"\n[bold green]Done[/] in {time.monotonic() - begun:.0f} s; nothing is left in the cluster.")


def _lease(ctl: shown.Ctl) -> dict[str, Any]:
    shown.step(
        f"Lease the model on a worker of its own that grows to {MOST} when it gets over {TARGET} requests/s each"
    )
    grows = ["--dedicated", "--max-replicas", str(MOST), "--scale-on", f"request_rate={TARGET}"]
    file = pathlib.Path(__file__).with_name("lease.yaml")
    model = "digits=model://digits/digits"
    ctl.show("lease", "create", "--file", str(file), "--model", model, *grows, "--name", "digits", "--wait")
    lease: dict[str, Any] = ctl.json("lease", "get", "digits")
    if lease["state"] != "LEASE_STATE_ACTIVE":
        raise SystemExit(f"the lease is {lease['state']}, not ACTIVE")
    return lease


def _grow_and_shrink(ctl: shown.Ctl, lease: dict[str, Any]) -> None:
    shown.step(f"Send {RATE:.0f} requests/s to its Service with an unmodified tritonclient, then a trickle")
    grown, failed = _follow(ctl, lease, _load(lease, RATE, LOAD_S), until=MOST)
    if grown < MOST:
        raise SystemExit(f"the lease grew to {grown} replicas only, not to {MOST}")
    shrunk, more = _follow(ctl, lease, _load(lease, TARGET / 10, SHRINK_S), until=1)
    if shrunk > 1:
        raise SystemExit("the lease did not shrink to one replica")
    if failed + more:
        raise SystemExit(f"{failed + more} requests failed")


def _follow(
    ctl: shown.Ctl, lease: dict[str, Any], load: Generator[dict[str, Any], None, None], *, until: int
) -> tuple[int, int]:
    """Shows the load and the lease's size side by side, until it keeps that size; answers the last size and the failures."""
    table = Table("second", "requests/s", "p99 ms", "failed", "replicas ready / wanted")
    ready, failed, steady = 0, 0, 0
    with contextlib.closing(load), live.Live(table, console=console, auto_refresh=False) as shown_now:
        for row in load:
            size = ctl.json("lease", "get", lease["id"])
            ready, failed = size["ready_replicas"], failed + sum(row["failed"].values())
            steady = steady + 1 if ready == size["wanted_replicas"] == until else 0
            if steady in {0, 1, STEADY} or row["failed"]:
                _tell(table, row, size)
                shown_now.refresh()
            if steady == STEADY:
                break
    return ready, failed


def _tell(table: Table, row: dict[str, Any], size: dict[str, Any]) -> None:
    p99 = "-" if row["p99_ms"] is None else f"{row['p99_ms']:.1f}"
    replicas = f"{size['ready_replicas']} / {size['wanted_replicas']}"
    table.add_row(str(row["second"]), str(row["answered"]), p99, str(sum(row["failed"].values())), replicas)


def _load(lease: dict[str, Any], rate: float, seconds: int) -> Generator[dict[str, Any], None, None]:
    at = f"{lease['endpoint']['host']}:{lease['endpoint']['http_port']}"
    command = [sys.executable, "-m", "examples.kubernetes.load", "--http", at, "--rate", str(rate)]
    client = subprocess.Popen([*command, "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True)
    rows: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_pass_on, args=(client, rows))
    reader.start()
    try:
        yield from _newest(rows)
    finally:
        client.terminate()
        client.wait(timeout=30)
        reader.join()


def _pass_on(client: subprocess.Popen[str], rows: queue.SimpleQueue[str]) -> None:
    for line in client.stdout or ():
        rows.put(line)
    rows.put("")


def _newest(rows: queue.SimpleQueue[str]) -> Iterator[dict[str, Any]]:
    """The last second that is over, with the failures of those that nobody has looked at."""
    while line := rows.get():
        row, failed = json.loads(line), collections.Counter[str]()
        failed.update(row["failed"])
        while not rows.empty():
            if not (line := rows.get()):
                rows.put("")
                break
            row = json.loads(line)
            failed.update(row["failed"])
        yield {**row, "failed": dict(failed)}


@contextlib.contextmanager
def _installed(repository: pathlib.Path, more: dict[str, Any]) -> Iterator[shown.Ctl]:
    values = {
        "persistence": {"enabled": False},
        "repositories": {"digits": {"path": "/tms/repositories/digits", "host_path": str(repository)}},
        "profiles": {"default": {"cpu_milli": 100, "termination_grace_s": 20}},
        "settings": {"kubernetes": {"connection_age_s": 3}},
        **more,
    }
    with helm_python.Config(kubeconfig_path=os.environ.get("KUBECONFIG"), namespace=NAMESPACE) as helm:
        try:
            with console.status("installing"):
                helm.install(CHART, "tms", values, create_namespace=True, wait="watcher", timeout=120)
            yield shown.Ctl("tms", {"XDG_CONFIG_HOME": _target(repository.parent)})
        finally:
            with console.status("uninstalling"):
                helm.uninstall("tms", ignore_not_found=True, wait="watcher", timeout=120)
                _forget_namespace()


def _target(scratch: pathlib.Path) -> str:
    """Saves the server under a name, with the authority that it made for itself; answers tmsctl's folder."""
    core = kubernetes.client.CoreV1Api()
    found = core.read_namespaced_config_map("tms-ca", NAMESPACE)
    authority = scratch / "ca.crt"
    authority.write_text((found.data or {})["ca.crt"])
    home = scratch / "tmsctl"
    address = f"tms.{NAMESPACE}.svc:30345"
    command = [str(shown.PROGRAMS / "tmsctl"), "target", "add", "tms", address, "--ca", str(authority), "-o", "name"]
    subprocess.run(command, check=True, env={**os.environ, "XDG_CONFIG_HOME": str(home)}, stdout=subprocess.DEVNULL)
    return str(home)


def _forget_namespace() -> None:
    core = kubernetes.client.CoreV1Api()
    core.delete_namespace(NAMESPACE)
    watch = kubernetes.watch.Watch()  # type: ignore[no-untyped-call]  # theirs
    chosen = {"field_selector": f"metadata.name={NAMESPACE}", "timeout_seconds": 60}
    for event in watch.stream(core.list_namespace, **chosen):  # type: ignore[no-untyped-call]  # theirs
        if event["type"] == "DELETED":
            watch.stop()  # type: ignore[no-untyped-call]  # theirs


def _read(file: pathlib.Path | None) -> dict[str, Any]:
    return helm_python.values_from_yaml(file.read_text()) if file is not None else {}


if __name__ == "__main__":
    sys.exit(main())
