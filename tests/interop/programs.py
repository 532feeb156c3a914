"""The clients and judges that are not Python: built or installed once into the cache, from what is pinned here."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

from tests.kubernetes.cluster import binaries

HERE = pathlib.Path(__file__).parent
REPOSITORY = HERE.parents[1]
_GO = HERE / "go"
_NODE = HERE / "node"

H2SPEC = binaries.Program("h2spec", "h2spec", "github.com/summerwind/h2spec/cmd/h2spec", _GO)
CLIENT = binaries.Program("interop-client", "client", ".", _GO)


def go(program: binaries.Program) -> pathlib.Path:
    """The program's file; half a minute the first time."""
    return binaries.ensure([program])[program.name]


def node() -> list[str | pathlib.Path]:
    """The command that runs the client in Node, up to its arguments; a few seconds the first time."""
    return [pathlib.Path(sys.executable).with_name("node"), _node_folder() / "client.js"]


def descriptors(into: pathlib.Path) -> pathlib.Path:
    """Writes the V2 protocol's descriptors as a file, for clients that have no stubs."""
    # A program of its own: two copies of a package cannot be registered in one.
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{REPOSITORY}", "--include_imports"]
    path = into / "v2.descriptors"
    subprocess.run(
        [*command, f"--descriptor_set_out={path}", "protos/inference/v2/predict.proto"], check=True, cwd=REPOSITORY
    )
    return path


def _node_folder() -> pathlib.Path:
    """Where client.js lies beside its packages; the name changes with its sources, so that no old one is ever taken."""
    names = ("package.json", "package-lock.json", "client.js")
    pinned = hashlib.sha256(b"".join((_NODE / name).read_bytes() for name in names)).hexdigest()[:16]
    cache = binaries.cache_folder().parent / "interop"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"node-{pinned}"
    with (cache / "node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _install(folder, names)
    return folder


def _install(folder: pathlib.Path, names: tuple[str, ...]) -> None:
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for name in names:
        shutil.copy(_NODE / name, unfinished)
    programs = pathlib.Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    installed = subprocess.run(
        [programs / "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=unfinished,
        env=environment,
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        raise AssertionError(f"npm could not install what {_NODE / 'package-lock.json'} pins:\n{installed.stderr}")
    unfinished.rename(folder)


def environment() -> dict[str, str]:
    """For clients: without proxies and other settings of gRPC's that a machine may have, and with this repository."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.upper().startswith(("GRPC", "HTTP", "ALL_PROXY"))
    }
    return inherited | {"PYTHONPATH": str(REPOSITORY), "no_proxy": "127.0.0.1"}
