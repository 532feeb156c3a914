"""Finds a real tritonserver in the cache, or makes it there once from the wheel that triton.lock pins.

Decides which Python runs its Python backend: the backend's stub is linked against a libpython3.N.so.1.0, which not every
Python brings. Starts nothing, and must never touch the environment of this project: the backend wants an older numpy.
"""

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
import subprocess
import sys
import sysconfig

import uv

_LOCK = pathlib.Path(__file__).with_name("triton.lock")
# The wheel has a stub for each, and the numpy of triton.lock has wheels for each.
_PYTHONS = ("3.11", "3.12")
_READY = "ready"


class EnvironmentFault(Exception):
    """The environment cannot be made; the message says what is missing and the remedy."""


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where a tritonserver lies and what it needs around it."""

    folder: pathlib.Path
    python: str

    @property
    def server(self) -> pathlib.Path:
        return self._triton / "bin" / "tritonserver"

    @property
    def backends(self) -> pathlib.Path:
        return self._triton / "backends"

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables beside those of this process: the stub takes the first Python of the PATH for its own."""
        libraries = (self._packages / "nvidia_pytriton.libs", self.folder / "lib")
        return {
            "PATH": os.pathsep.join((str(self.folder / "venv" / "bin"), os.environ.get("PATH", os.defpath))),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        }

    @property
    def _packages(self) -> pathlib.Path:
        return self.folder / "venv" / "lib" / f"python{self.python}" / "site-packages"

    @property
    def _triton(self) -> pathlib.Path:
        return self._packages / "pytriton" / "tritonserver"

    def finish(self) -> None:
        """Puts the one stub that fits where the backend looks for it; a wheel's files are not executable."""
        backend = self.backends / "python"
        stub = self._triton / "python_backend_stubs" / self.python / "triton_python_backend_stub"
        shutil.copy(stub, backend / stub.name)
        for program in (self.server, backend / stub.name):
            program.chmod(0o755)


def unfit() -> str:
    """Why no tritonserver can run on this machine at all; empty where one can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the wheel of tritonserver is for Linux on x86_64, not {sys.platform} on {platform.machine()}"
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split("."))) < (2, 35):
        return (
            f"the wheel of tritonserver needs glibc 2.35 or newer, here is {library or 'another C library'} {version}"
        )
    return ""


def ensure() -> Environment:
    """The environment, made within a minute the first time (200 MB).

    Raises:
        EnvironmentFault: a package cannot be had, or no libpython.
    """
    python = _python()
    found = Environment(_cache_folder() / f"triton-{_fingerprint(python)}", python)
    if not (found.folder / _READY).exists():
        with _lock():
            if not (found.folder / _READY).exists():  # somebody else may have made it while this process waited
                _make(found)
    return found


def _make(wanted: Environment) -> None:
    _say(f"setting up tritonserver in {wanted.folder} ...")
    shutil.rmtree(wanted.folder, ignore_errors=True)
    venv = wanted.folder / "venv"
    _uv("venv", "--quiet", "--python", _interpreter(wanted.python), str(venv))
    interpreter = str(venv / "bin" / "python")
    _uv(
        "pip",
        "install",
        "--quiet",
        "--link-mode=copy",
        "--no-deps",
        "--require-hashes",
        "--python",
        interpreter,
        "-r",
        str(_LOCK),
    )
    (wanted.folder / "lib").mkdir()
    name = f"libpython{wanted.python}.so.1.0"
    (wanted.folder / "lib" / name).symlink_to(_library(name, interpreter, wanted))
    wanted.finish()
    (wanted.folder / _READY).touch()


def _python() -> str:
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    return ours if ours in _PYTHONS else _PYTHONS[-1]


def _interpreter(python: str) -> str:
    """The Python that this one comes from where it fits; else uv finds or fetches one."""
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    return getattr(sys, "_base_executable", sys.executable) if ours == python else python


def _library(name: str, interpreter: str, wanted: Environment) -> pathlib.Path:
    script = "import sys, sysconfig; print(sys.base_prefix); print(sysconfig.get_config_var('LIBDIR') or '')"
    told = _run([interpreter, "-c", script]).splitlines()
    folders = [pathlib.Path(told[0]) / "lib", pathlib.Path(told[1] or "/usr/lib")]
    folders += [folder / (sysconfig.get_config_var("MULTIARCH") or "") for folder in list(folders)]
    found = next((folder / name for folder in folders if (folder / name).exists()), None)
    return found or _from_package(name, wanted)


def _from_package(name: str, wanted: Environment) -> pathlib.Path:
    """Debian's Python is linked statically; its library is a package of its own, which needs no root to unpack."""
    package = f"libpython{wanted.python}"
    folder = wanted.folder / "apt"
    folder.mkdir()
    try:
        _run(["apt-get", "download", "--quiet", package], folder)
        _run(["dpkg-deb", "--extract", str(next(folder.glob("*.deb"))), str(folder)])
        return next(path for path in folder.rglob(name))
    except (EnvironmentFault, OSError, StopIteration) as error:
        raise EnvironmentFault(
            f"tritonserver's Python backend needs {name}, which this Python does not bring: install {package} "
            f"(apt-get install {package}), or run with a Python built with --enable-shared ({error})"
        ) from error


def _fingerprint(python: str) -> str:
    made_of = (_LOCK.read_bytes(), pathlib.Path(__file__).read_bytes(), _interpreter(python).encode())
    return hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]


def _cache_folder() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "tms"


@contextlib.contextmanager
def _lock() -> collections.abc.Iterator[None]:
    _cache_folder().mkdir(parents=True, exist_ok=True)
    with (_cache_folder() / "triton.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _uv(*words: str) -> str:
    return _run([uv.find_uv_bin(), *words])


def _run(command: list[str], folder: pathlib.Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentFault(f"'{' '.join(command)}' failed with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _say(words: str) -> None:
    sys.stderr.write(f"{words}\n")
