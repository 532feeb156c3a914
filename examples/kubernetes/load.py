"""Sends requests to a lease at a steady rate with an unmodified tritonclient and prints one JSON line each second.

Runs in a process of its own, as a user's client would: it knows an address and a model's name, and nothing of TMS. Ends
by itself; exits with 1 when a request failed.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np
import tritonclient.http

SHAPE = (1, 64)


class Tally:
    """What came of the requests of one second; `take` begins the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latencies_ms: list[float] = []
        self._failures: collections.Counter[str] = collections.Counter()
        self.failed = 0

    def answered(self, latency_ms: float) -> None:
        with self._lock:
            self._latencies_ms.append(latency_ms)

    def refused(self, why: str) -> None:
        with self._lock:
            self._failures[why] += 1
            self.failed += 1

    def take(self) -> dict[str, object]:
        with self._lock:
            latencies_ms, failures = self._latencies_ms, self._failures
            self._latencies_ms, self._failures = [], collections.Counter()
        p99 = float(np.percentile(latencies_ms, 99)) if latencies_ms else None
        return {"answered": len(latencies_ms), "p99_ms": p99, "failed": dict(failures)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Keeps the rate as long as the connections can; a request that comes too late is sent at once."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--http", required=True, help="host:port")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second, all connections together")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args(arguments)
    tally, stop = Tally(), threading.Event()
    senders = [
        threading.Thread(target=_send, args=(options, number, tally, stop), daemon=True)
        for number in range(options.connections)
    ]
    for sender in senders:
        sender.start()
    try:
        for second in range(1, int(options.seconds) + 1):
            stop.wait(1.0)
            print(json.dumps({"second": second, **tally.take()}), flush=True)
    finally:
        stop.set()
    for sender in senders:
        sender.join(timeout=30.0)
    return 1 if tally.failed else 0


def _send(options: argparse.Namespace, number: int, tally: Tally, stop: threading.Event) -> None:
    pause_s = options.connections / options.rate
    due = time.monotonic() + pause_s * number / options.connections
    tensor = tritonclient.http.InferInput("pixels", list(SHAPE), "FP32")
    tensor.set_data_from_numpy(np.zeros(SHAPE, np.float32))
    with tritonclient.http.InferenceServerClient(options.http, network_timeout=10.0) as client:
        while not stop.wait(max(0.0, due - time.monotonic())):
            due += pause_s
            begun = time.perf_counter()
            try:
                client.infer(options.model, [tensor])
            except Exception as problem:  # noqa: BLE001 - whatever the client raises is a failed request
                tally.refused(f"{type(problem).__name__}: {problem}"[:200])
            else:
                tally.answered((time.perf_counter() - begun) * 1e3)


if __name__ == "__main__":
    sys.exit(main())
