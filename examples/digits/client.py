"""Sends the held-out digits to a lease with an unmodified tritonclient and prints one JSON line for each protocol.

Runs in a process of its own, as a user's client would: it knows an address and a model's name, and nothing of TMS.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray

from examples.digits import train

Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def main() -> None:
    """Measures accuracy, latency (one digit a request) and throughput (64 digits a request)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--http", required=True, help="host:port")
    parser.add_argument("--grpc", required=True, help="host:port")
    parser.add_argument("--held-out", required=True, type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to send with each protocol")
    options = parser.parse_args()
    pixels, labels = train.held_out(options.held_out)
    for protocol, infer in _protocols(options.http, options.grpc):
        print(json.dumps({"protocol": protocol, **_measure(infer, pixels, labels, options.seconds)}), flush=True)


def _protocols(http_url: str, grpc_url: str) -> Iterator[tuple[str, Infer]]:
    with tritonclient.http.InferenceServerClient(http_url) as http:
        yield "HTTP JSON", lambda batch: _call(tritonclient.http, http, batch, {"binary_data": False})
        yield "HTTP binary", lambda batch: _call(tritonclient.http, http, batch, {"binary_data": True})
    with tritonclient.grpc.InferenceServerClient(grpc_url) as grpc:
        yield "gRPC", lambda batch: _call(tritonclient.grpc, grpc, batch, {})


def _call(library: Any, client: Any, batch: NDArray[np.float32], form: dict[str, bool]) -> NDArray[np.float32]:
    tensor = library.InferInput("pixels", list(batch.shape), "FP32")
    tensor.set_data_from_numpy(batch, **form)
    output = library.InferRequestedOutput("probabilities", **form)
    answer = client.infer("digits", [tensor], outputs=[output])
    probabilities: NDArray[np.float32] = answer.as_numpy("probabilities")
    return probabilities


def _measure(infer: Infer, pixels: NDArray[np.float32], labels: NDArray[np.int64], seconds: float) -> dict[str, float]:
    answers = np.concatenate([infer(pixels[start : start + 64]) for start in range(0, len(pixels), 64)])
    latencies_ms = np.array(list(_latencies_ms(infer, pixels[:1], seconds / 2)))
    batches = list(_latencies_ms(infer, pixels[:64], seconds / 2))
    return {
        "accuracy": float((answers.argmax(axis=1) == labels).mean()),
        "p50_ms": float(np.percentile(latencies_ms, 50)),
        "p99_ms": float(np.percentile(latencies_ms, 99)),
        "digits_per_s": 64 * len(batches) / (sum(batches) / 1e3),
    }


def _latencies_ms(infer: Infer, batch: NDArray[np.float32], seconds: float) -> Iterator[float]:
    end = time.monotonic() + seconds
    while (begun := time.perf_counter()) and time.monotonic() < end:
        infer(batch)
        yield (time.perf_counter() - begun) * 1e3


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
