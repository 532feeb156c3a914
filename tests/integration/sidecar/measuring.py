"""A program that fetches one file and tells by how many bytes its memory grew at most."""

from __future__ import annotations

import base64
import pathlib
import pickle
import sys
import threading

from sidecar import values
from sidecar.cache import store
from sidecar.fetching import fetch, progress
from sidecar.sources import http


def main(directory: str) -> None:
    model: values.Model = pickle.loads(base64.b64decode(sys.stdin.readline()))
    kept = store.Cache(pathlib.Path(directory))
    # What a sidecar has imported before its first fetch is not the fetch's.
    http.Client().close()
    before_bytes = _memory_bytes("VmRSS")
    fetch.fetch(kept, model, threading.Event(), progress.Progress(model.size_bytes))
    sys.stdout.write(f"{_memory_bytes('VmHWM') - before_bytes}")


def _memory_bytes(name: str) -> int:
    """VmRSS: now; VmHWM: the most since the program began."""
    lines = pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(sys.argv[1])
