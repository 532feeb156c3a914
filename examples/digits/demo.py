"""The main job, end to end, on this machine: ``make demo``.

Trains a classifier, starts a control plane with its embedded defaults, leases the model, uses it with an unmodified
third-party client, shows that use renews the lease, stops, and shows the idle lease expire and its worker go.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from examples import shown
from examples.digits import train

HOLD, WINDOW = "15s", "10s"
USE_S = 15.0
console = shown.console


def main() -> int:
    """Runs the demo; 0 when every step did what it should. Leaves no process and no file behind, also after Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with tempfile.TemporaryDirectory(prefix="tms-demo-") as scratch:
        try:
            _run(pathlib.Path(scratch))
        except KeyboardInterrupt:
            console.print("\n[yellow]Interrupted; everything was stopped.[/]")
            return 130
    return 0


def _run(scratch: pathlib.Path) -> None:
    begun = time.monotonic()
    shown.step("Train a classifier of handwritten digits, two versions, into a model repository")
    with console.status("training and exporting to ONNX"):
        trained = train.train(scratch)
    for version, accuracy in trained.accuracies.items():
        console.print(f"  version {version}: {accuracy:.1%} of the held-out digits")
    shown.step("Start the control plane (SQLite, local worker processes)")
    with _server(scratch, trained.repository) as target:
        console.print(f"  tms-server listens on {target}")
        ctl = shown.Ctl(target)
        lease = _lease(ctl)
        _use(lease, trained.held_out)
        _renews(ctl, lease, trained.held_out)
        _expires(ctl, lease)
    console.print(f"\n[bold green]Done[/] in {time.monotonic() - begun:.0f} s; nothing is left running.")


def _lease(ctl: shown.Ctl) -> dict[str, Any]:
    shown.step(f"Lease the model: held {HOLD} at least, then for as long as it was used in the last {WINDOW}")
    model = "digits=model://digits/digits"
    ctl.show("lease", "create", "--model", model, "--hold", HOLD, "--window", WINDOW, "--name", "digits", "--wait")
    lease: dict[str, Any] = ctl.json("lease", "get", "digits")
    if lease["state"] != "LEASE_STATE_ACTIVE":
        raise SystemExit(f"the lease is {lease['state']}, not ACTIVE")
    ctl.show("worker", "list")
    return lease


def _use(lease: dict[str, Any], held_out: pathlib.Path) -> None:
    shown.step("Send the held-out digits with an unmodified tritonclient")
    table = Table("protocol", "accuracy", "p50 ms", "p99 ms", "digits/s")
    for line in _client(lease, held_out, seconds=1.0).splitlines():
        row = json.loads(line)
        figures = (
            f"{row['accuracy']:.1%}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['digits_per_s']:,.0f}",
        )
        table.add_row(row["protocol"], *figures)
    console.print(table)


def _renews(ctl: shown.Ctl, lease: dict[str, Any], held_out: pathlib.Path) -> None:
    shown.step(f"Go on using it for {USE_S:.0f} s, past its hold: use renews the lease")
    client = threading.Thread(target=_client, args=(lease, held_out), kwargs={"seconds": USE_S / 3})
    client.start()
    while client.is_alive():
        client.join(timeout=USE_S / 3)
        now = ctl.json("lease", "get", lease["id"])
        console.print(
            f"  {now['state'].removeprefix('LEASE_STATE_')}, ends in {now.get('expires', {}).get('remaining', '-')}"
        )


def _expires(ctl: shown.Ctl, lease: dict[str, Any]) -> None:
    shown.step("Stop using it: the idle lease expires and its worker goes")
    ctl.show("lease", "watch", lease["id"])
    ended = ctl.json("lease", "get", lease["id"])
    if ended["state"] != "LEASE_STATE_EXPIRED":
        raise SystemExit(f"the lease is {ended['state']}, not EXPIRED")
    ctl.show("worker", "list")
    shown.step("What happened")
    ctl.show("lease", "events", lease["id"])


def _client(lease: dict[str, Any], held_out: pathlib.Path, *, seconds: float) -> str:
    at: dict[str, Any] = lease["endpoint"]
    addresses = ["--http", f"{at['host']}:{at['http_port']}", "--grpc", f"{at['host']}:{at['grpc_port']}"]
    files = ["--held-out", str(held_out), "--seconds", str(seconds)]
    command = [sys.executable, "-m", "examples.digits.client", *addresses, *files]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return finished.stdout


@contextlib.contextmanager
def _server(scratch: pathlib.Path, repository: pathlib.Path) -> Iterator[str]:
    ready = scratch / "ready.json"
    flags = [f"--data-dir={scratch / 'state'}", f"--repository=digits={repository}", f"--ready-file={ready}"]
    ports = ["--api-port=0", "--metrics-port=0", "--stop-workers-at-exit"]
    with (scratch / "server.log").open("w") as log:
        server = subprocess.Popen(
            [str(shown.PROGRAMS / "tms-server"), *flags, *ports], stderr=log, start_new_session=True
        )
        try:
            yield _when_ready(server, ready)
        finally:
            server.terminate()
            server.wait(timeout=30)


def _when_ready(server: subprocess.Popen[bytes], ready: pathlib.Path) -> str:
    with console.status("starting"):
        while not ready.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise SystemExit(f"tms-server ended with {server.wait(timeout=0.05)}; see its log above")
    address: str = json.loads(ready.read_text())["api"]
    return address


if __name__ == "__main__":
    sys.exit(main())
