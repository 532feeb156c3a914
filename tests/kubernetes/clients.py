"""A user's clients: unmodified tritonclient in a process of its own, over HTTP and gRPC, with connections that live long.

Run as a program it infers without end and tells, line by line, what was answered so far and what failed; `Clients` is
the test's half. It knows an address and a model's name, and nothing of TMS.
"""

from __future__ import annotations

import argparse
import collections
import collections.abc
import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

PAUSE_S = 0.05
TOLD_EVERY_S = 0.1
LIMIT_S = 60.0
_ONES = np.ones((1, 4), np.float32)


@dataclasses.dataclass(frozen=True)
class Said:
    """All that came of the clients so far. `answered`: requests by protocol and by the factor of the model."""

    answered: dict[str, dict[float, int]]
    failed: list[str]

    def count(self, protocol: str, factor: float) -> int:
        return self.answered.get(protocol, {}).get(factor, 0)


class Clients:
    """The running program."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def now(self) -> Said:
        """What is said next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the clients ended with {self._process.wait()}"
        said = json.loads(line)
        answered = {
            protocol: {float(factor): count for factor, count in counts.items()}
            for protocol, counts in said["answered"].items()
        }
        return Said(answered, said["failed"])

    def until(self, good: collections.abc.Callable[[Said], object]) -> Said:
        deadline = time.monotonic() + LIMIT_S
        while not good(said := self.now()):
            assert time.monotonic() < deadline, said
        return said

    def onward(self, factor: float, requests: int = 20) -> Said:
        """Waits until each protocol has got so many further answers with this factor."""
        self.catch_up()
        before = self.now()
        protocols = before.answered
        return self.until(
            lambda said: all(said.count(each, factor) >= before.count(each, factor) + requests for each in protocols)
        )

    def only(self, factor: float, requests: int = 20) -> Said:
        """Waits until each protocol has got so many answers in turn with this factor and no other."""
        marks: dict[str, tuple[int, int]] = {}

        def good(said: Said) -> bool:
            for protocol, counts in said.answered.items():
                others, own = sum(counts.values()) - counts.get(factor, 0), counts.get(factor, 0)
                if marks.setdefault(protocol, (others, own))[0] != others:
                    marks[protocol] = (others, own)
            return all(said.count(protocol, factor) - marks[protocol][1] >= requests for protocol in said.answered)

        self.catch_up()
        return self.until(good)

    def catch_up(self) -> None:
        """Skips what was said while nobody listened: lines come evenly, so one that had to be waited for is new."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            begun = time.monotonic()
            self.now()
            if time.monotonic() - begun > TOLD_EVERY_S / 2:
                return


@contextlib.contextmanager
def running(host: str, model: str = "m", *arguments: str) -> collections.abc.Iterator[Clients]:
    """Clients of an address for the length of a block, from the first answer over each protocol on."""
    command = [sys.executable, "-m", "tests.kubernetes.clients", "--host", host, "--model", model, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        clients = Clients(process)
        clients.until(lambda said: said.failed or all(sum(each.values()) for each in said.answered.values()))
        yield clients
    finally:
        process.terminate()
        assert process.stdout is not None
        process.stdout.close()
        process.wait(timeout=LIMIT_S)


class Tally:
    """Counts of all threads."""

    def __init__(self, protocols: collections.abc.Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._answered: dict[str, collections.Counter[float]] = {each: collections.Counter() for each in protocols}
        self._failed: list[str] = []

    def answered(self, protocol: str, factor: float) -> None:
        with self._lock:
            self._answered[protocol][factor] += 1

    def failed(self, protocol: str, why: str) -> None:
        with self._lock:
            self._failed.append(f"{protocol}: {why}"[:300])
            del self._failed[:-100]

    def line(self) -> str:
        with self._lock:
            return json.dumps({"answered": self._answered, "failed": self._failed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--http", type=int, default=3, help="connections over HTTP")
    parser.add_argument("--grpc", type=int, default=2, help="connections over gRPC")
    options = parser.parse_args()
    chosen = {protocol: count for protocol, count in (("http", options.http), ("grpc", options.grpc)) if count}
    tally, stop = Tally(chosen), threading.Event()
    for protocol, count in chosen.items():
        for _ in range(count):
            threading.Thread(target=_infer, args=(protocol, options, tally, stop), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        while not stop.wait(TOLD_EVERY_S):
            sys.stdout.write(tally.line() + "\n")
            sys.stdout.flush()


def _infer(protocol: str, options: argparse.Namespace, tally: Tally, stop: threading.Event) -> None:
    library, port = (tritonclient.http, 8000) if protocol == "http" else (tritonclient.grpc, 8001)
    bounds: dict[str, Any] = {"network_timeout": LIMIT_S} if protocol == "http" else {}
    tensor = library.InferInput("INPUT", list(_ONES.shape), "FP32")
    tensor.set_data_from_numpy(_ONES)
    with library.InferenceServerClient(f"{options.host}:{port}", **bounds) as client:
        while not stop.wait(PAUSE_S):
            try:
                answer = client.infer(options.model, [tensor])
            except Exception as problem:  # noqa: BLE001 - whatever the client raises is a failed request
                tally.failed(protocol, f"{type(problem).__name__}: {problem}")
            else:
                tally.answered(protocol, float(answer.as_numpy("OUTPUT")[0][0]))


if __name__ == "__main__":
    main()
