"""Finds programs in Go, those of a control plane first, or builds them once into the cache. Starts none of them."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import fcntl
import hashlib
import os
import pathlib
import platform
import shutil

from tests.kubernetes.cluster import go_toolchain, layout

_MODULES = pathlib.Path(__file__).parent / "go"
_KUBERNETES_VERSION = "v1.36.3"  # what go/kubernetes/go.mod pins; the API server answers with it


@dataclasses.dataclass(frozen=True)
class Program:
    """A program, the folder below `root` that pins it and the Go package that it is built from; "." is its own."""

    name: str
    module: str
    package: str
    root: pathlib.Path = _MODULES

    @property
    def folder(self) -> pathlib.Path:
        return self.root / self.module

    @property
    def cache_path(self) -> pathlib.Path:
        """Where a built copy lies. It changes with what the module pins, so that no old one is ever taken for new."""
        pinned = hashlib.sha256(platform.machine().encode())
        own = sorted(path.name for path in self.folder.glob("*.go")) if self.package == "." else []
        for name in ("go.mod", "go.sum", *own):
            pinned.update((self.folder / name).read_bytes())
        return cache_folder() / f"{self.module}-{pinned.hexdigest()[:16]}" / self.name


PROGRAMS = (
    Program("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    Program("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    Program("kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    Program("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    Program("kube-proxy", "kubernetes", "k8s.io/kubernetes/cmd/kube-proxy"),
    Program("coredns", "coredns", "github.com/coredns/coredns"),
)


def cache_folder() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "tms" / "cluster"


def find(programs: collections.abc.Sequence[Program] = PROGRAMS) -> dict[str, pathlib.Path]:
    """Looks for each program in $KUBEBUILDER_ASSETS, then in the cache; what is in neither is left out."""
    found = {program.name: _find(program) for program in programs}
    return {name: path for name, path in found.items() if path is not None}


def ensure(programs: collections.abc.Sequence[Program] = PROGRAMS) -> dict[str, pathlib.Path]:
    """Finds the programs and builds those that are missing: a control plane's take a few minutes each the first time.

    Raises:
        go_toolchain.BuildError: Go is missing and cannot be had, or does not build a program.
    """
    if len(found := find(programs)) == len(programs):
        return found
    with _build_lock():
        found = find(programs)  # somebody else may have built them while this process waited
        missing = [program for program in programs if program.name not in found]
        for position, program in enumerate(missing, start=1):
            _build(program, f"[{position}/{len(missing)}] {program.name}")
    return find(programs)


def _find(program: Program) -> pathlib.Path | None:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    candidates = [pathlib.Path(assets) / program.name] if assets else []
    candidates.append(program.cache_path)
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


@contextlib.contextmanager
def _build_lock() -> collections.abc.Iterator[None]:
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            layout.say("another process builds programs: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(program: Program, title: str) -> None:
    """Builds beside the final place and moves it there whole, so that nobody ever finds half a program."""
    folder = program.cache_path.parent
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{program.name}.unfinished"
    flags = f"-s -w -X k8s.io/component-base/version.gitVersion={_KUBERNETES_VERSION}"
    order = go_toolchain.Order(
        title=title,
        folder=program.folder,
        package=program.package,
        linker_flags=flags if program.module == "kubernetes" else "-s -w",
        output=unfinished,
    )
    go_toolchain.build(go_toolchain.find(cache_folder()), order)
    shutil.move(unfinished, program.cache_path)
