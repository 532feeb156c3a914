"""Asks a worker without pause with an unmodified tritonclient until its standard input ends.

Usage: python triton_load.py http|grpc PORT. Prints how many requests were answered and what the others met, as JSON. A
process of its own, since two copies of package `inference` clash.
"""

from __future__ import annotations

import collections
import json
import sys
import threading

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

_THREADS = 4


def main() -> None:
    module = {"http": httpclient, "grpc": grpcclient}[sys.argv[1]]
    stop = threading.Event()
    answered = collections.Counter[str]()
    met = collections.Counter[str]()

    def ask(name: str) -> None:
        client = module.InferenceServerClient(f"127.0.0.1:{sys.argv[2]}")
        tensor = module.InferInput("INPUT", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
        while not stop.is_set():
            try:
                client.infer("ident", [tensor])
                answered[name] += 1
            except Exception as error:  # noqa: BLE001 - whatever a client meets is what the test is about
                met[f"{type(error).__name__}: {error}"] += 1
        client.close()

    threads = [threading.Thread(target=ask, args=(str(number),)) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"answered": sum(answered.values()), "met": met}))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
