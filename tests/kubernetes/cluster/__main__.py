"""The command line of the test cluster: `build`, `exec -- COMMAND`, `unshare -- COMMAND`."""

from __future__ import annotations

import collections.abc
import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Annotated

import typer

from tests.kubernetes.cluster import binaries, control_plane, go_toolchain, layout, namespace, programs, supervisor
from tests.kubernetes.cluster import nodes as node_values

_COMMAND_SETTINGS = {"allow_extra_args": False, "ignore_unknown_options": False}
_Command = Annotated[list[str], typer.Argument(metavar="COMMAND...", help="What to run, after `--`.")]
_Inside = Annotated[bool, typer.Option("--inside", hidden=True, help="Already in the namespace.")]

app = typer.Typer(
    help="A real control plane for tests, without root and without containers.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def build() -> None:
    """Find the programs of the cluster, or build them once (six to seven minutes on two cores)."""
    for name, path in binaries.ensure().items():
        typer.echo(f"{name} {path}")


@app.command("exec", context_settings=_COMMAND_SETTINGS)
def execute(
    command: _Command,
    nodes: Annotated[int, typer.Option(min=0, max=node_values.MAX_NODES, help="Worker nodes.")] = 2,
    cpus: Annotated[float, typer.Option(help="CPUs of each worker node.")] = 16,
    memory_gib: Annotated[int, typer.Option(help="Memory of each worker node, GiB.")] = 64,
    pods: Annotated[int, typer.Option(help="Pods that each worker node takes.")] = 110,
    gpus: Annotated[int, typer.Option(help="GPUs (nvidia.com/gpu) of each worker node.")] = 8,
    label: Annotated[list[str] | None, typer.Option(help="KEY=VALUE on each worker node; repeatable.")] = None,
    taint: Annotated[list[str] | None, typer.Option(help="KEY[=VALUE]:EFFECT on each worker node.")] = None,
    *,
    instant: Annotated[bool, typer.Option(help="Answer for pods without starting any process.")] = False,
    bare: Annotated[bool, typer.Option(help="No nodes and no kube-proxy: the API and its controllers only.")] = False,
    hpa_sync_s: Annotated[int, typer.Option(help="Seconds between two looks of the HPA controller.")] = 1,
    node_grace_s: Annotated[int, typer.Option(help="Seconds until a silent node is lost.")] = 10,
    start_limit_s: Annotated[float, typer.Option(help="Seconds that each program may take to be ready.")] = 30,
    directory: Annotated[pathlib.Path | None, typer.Option(help="Keep files here, a new folder.")] = None,
    inside: _Inside = False,
) -> None:
    """Run COMMAND in a new cluster, with KUBECONFIG and TMS_CLUSTER set; stop the cluster when it ends."""
    shape = node_values.Shape(
        count=nodes,
        cpu_milli=round(cpus * 1000),
        memory_bytes=memory_gib << 30,
        pods=pods,
        gpus=gpus,
        labels=dict(_parse_label(text) for text in label or []),
        taints=tuple(_parse_taint(text) for text in taint or []),
        instant=instant,
    )
    tuning = programs.Tuning(hpa_sync_s=hpa_sync_s, node_grace_s=node_grace_s)
    settings = control_plane.Settings(
        node_values.of(shape),
        bare or not programs.KUBELET.exists(),
        tuning,
        start_limit_s,
    )
    if not inside:
        binaries.ensure()
        _enter()
    with _directory(directory) as folder:
        status = control_plane.run(settings, folder, command)
    raise typer.Exit(status)


@app.command(context_settings=_COMMAND_SETTINGS)
def unshare(command: _Command, *, inside: _Inside = False) -> None:
    """Run COMMAND in the cluster's network without a cluster: pods' addresses can be bound, nothing leads out."""
    if not inside:
        _enter()
    with _directory(None) as folder:
        namespace.set_up(folder)
    os.execvp(command[0], command)


def _enter() -> None:
    namespace.check()
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    first = sys.argv[1]
    namespace.enter([first, "--inside", *sys.argv[2:at], *sys.argv[at:]])


@contextlib.contextmanager
def _directory(named: pathlib.Path | None) -> collections.abc.Iterator[pathlib.Path]:
    """A named folder is made and kept; else a new one goes when all is over."""
    if named:
        named.mkdir(parents=True)
        yield named.resolve()
        return
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tms-cluster-"))  # short: it holds the paths of sockets
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parse_label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise typer.BadParameter(f"label {text!r}: write KEY=VALUE")
    return key, value


def _parse_taint(text: str) -> node_values.Taint:
    try:
        return node_values.Taint.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def main() -> None:
    namespace.extend_path()
    try:
        app()
    except (namespace.NamespaceError, go_toolchain.BuildError, supervisor.StartError) as error:
        layout.say(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
