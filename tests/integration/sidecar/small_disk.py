"""A program on a disk of its own of 8 MiB: fetches what does not fit, then from a disk that became read-only.

Where the system gives no such disk, no file may grow beyond 8 MiB, and the directories cannot be written to.
"""

from __future__ import annotations

import os
import pathlib
import resource
import subprocess
import sys
import threading

from sidecar import errors, values
from sidecar.cache import store
from sidecar.fetching import fetch, progress
from tests.integration.sidecar.sources import model_of

MIB = 1 << 20
_MARK = "TMS_TEST_SMALL_DISK"


def main(directory: pathlib.Path) -> None:
    if _MARK not in os.environ:
        argv = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-m", __spec__.name, str(directory)]
        if subprocess.run([*argv[:4], "true"], capture_output=True, check=False).returncode == 0:
            os.execvpe(argv[0], argv, {**os.environ, _MARK: "mount"})
    disk = directory / "disk"
    disk.mkdir()
    mounts = os.environ.get(_MARK) == "mount"
    if mounts:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, 8 * MIB))
    kept = store.Cache(disk / "cache")
    fits, big, other = (_model(directory, name, size) for name, size in (("fits", 4), ("big", 9), ("other", 1)))
    run(kept, fits)
    _say(run(kept, big))
    if mounts:
        kept.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    else:
        for name in ("reserved", "pins", "partial"):
            (disk / "cache" / name).rename(disk / name)
    _say(run(store.Cache(disk / "cache") if mounts else kept, other))
    _say("served" if all(kept.find(fits.uri, file) for file in fits.files) else "lost")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run(kept: store.Cache, model: values.Model) -> str:
    try:
        fetch.fetch(kept, model, threading.Event(), progress.Progress(model.size_bytes))
    except errors.ModelFailed as error:
        return f"{error.failure.reason} {error.failure.retryable}"
    return "came"


def _model(directory: pathlib.Path, name: str, mebibytes: int) -> values.Model:
    (directory / name).mkdir()
    (directory / name / "weights").write_bytes(b"x" * (mebibytes * MIB - 1)) if mebibytes < 8 else _big(
        directory / name / "weights", mebibytes
    )
    return model_of(directory / name, name)


def _big(path: pathlib.Path, mebibytes: int) -> None:
    """Sparse; made by another process, whose files may be so big."""
    subprocess.run([sys.executable, "-c", f"open({str(path)!r}, 'w').truncate({mebibytes * MIB})"], check=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
