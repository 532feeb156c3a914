"""Processes that use the cache and die: killed while they hold something, or at a given line of the cache's code."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from sidecar import values
from sidecar.cache import partial, store
from sidecar.fetching import fetch, progress, reading
from tests.integration.sidecar.sources import model_of

_HERE = ("sidecar/cache/", "sidecar/fetching/fetch.py", "sidecar/fetching/reading.py", "sidecar/fetching/archive.py")


@contextlib.contextmanager
def child(root: pathlib.Path, model: values.Model, *, most_bytes: int, then: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has fetched the model (`hold`) or was promised room for it (`promise`), and does no more."""
    argv = [sys.executable, "-m", __name__, then, str(root), str(most_bytes)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(base64.b64encode(pickle.dumps(model)) + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.kill()


@dataclasses.dataclass(frozen=True)
class Outcome:
    crashes: int
    wrong: list[str]


class Crashes:
    """Runs a program that forks for each line at which a fetch is to die, and looks at what is left each time."""

    def run(self, directory: pathlib.Path) -> Outcome:
        argv = [sys.executable, "-m", __name__, "crash", str(directory)]
        said = subprocess.run(argv, capture_output=True, text=True, timeout=280, check=True)
        return Outcome(**json.loads(said.stdout))

    def close(self) -> None:
        """Nothing outlives `run`."""


def main(what: str, *given: str) -> None:
    if what == "crash":
        sys.stdout.write(json.dumps(dataclasses.asdict(_crash_everywhere(pathlib.Path(given[0])))))
        return
    model: values.Model = pickle.loads(base64.b64decode(sys.stdin.readline()))
    kept = store.Cache(pathlib.Path(given[0]), store.Limits(most_bytes=int(given[1])))
    with contextlib.ExitStack() as held:
        if what == "promise":
            held.enter_context(kept.admitted(model.uri, model.files))
        else:
            _fetch(kept, model)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        signal.pause()


def _fetch(kept: store.Cache, model: values.Model) -> fetch.Fetched:
    return fetch.fetch(kept, model, threading.Event(), progress.Progress(model.size_bytes))


def _crash_everywhere(directory: pathlib.Path) -> Outcome:
    # A small file is as good as a big one here.
    reading.SPAN_BYTES, partial.JOURNALLED_BYTES = 1 << 18, 1 << 17
    source = directory / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(600_000))
    (source / "small").write_bytes(b"small")
    model = model_of(source)
    wrong: list[str] = []
    crashes = line = 0
    while True:
        line += 1 + line // 25
        root = directory / f"cache-{line % 7}"
        if not _dies_at(line, root, model):
            return Outcome(crashes, wrong)
        crashes += 1
        wrong.extend(f"after line {line}: {each}" for each in _wrong(root, source, model))


def _dies_at(line: int, root: pathlib.Path, model: values.Model) -> bool:
    """Whether a fetch, in a process of its own, has so many lines; it is killed there."""
    pid = os.fork()
    if pid:
        _pid, ended = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(ended) or os.WEXITSTATUS(ended) == 0, f"line {line}: {ended}"
        return os.WIFSIGNALED(ended)
    code = 1
    try:
        left = line

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal left
            if not any(part in frame.f_code.co_filename for part in _HERE):
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        threading.settrace(trace)
        sys.settrace(trace)
        kept = store.Cache(root)
        kept.sweep()
        _fetch(kept, model)
        sys.settrace(None)
        code = 0
    finally:
        os._exit(code)


def _wrong(root: pathlib.Path, source: pathlib.Path, model: values.Model) -> Iterator[str]:
    """Looks as the next sidecar does, and clears the way for the next crash."""
    kept = store.Cache(root)
    for file in model.files:
        sha256 = kept.find(model.uri, file)
        if sha256 and kept.blob(sha256).read_bytes() != (source / file.path).read_bytes():
            yield f"{file.path} is shown with other bytes"
    kept.sweep()
    learnt = _fetch(kept, model).learnt
    for file in learnt:
        if kept.blob(file.sha256).read_bytes() != (source / file.path).read_bytes():
            yield f"{file.path} came with other bytes"
        kept.blob(file.sha256).unlink()
    for name in ("partial", "locks", "reserved"):
        left = [path.name for path in (root / name).iterdir()]
        if name != "locks" and left:
            yield f"{name} is left with {left}"
    kept.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
