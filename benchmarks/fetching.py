"""The sidecar's fetch against boto3's download_file and against what the disk takes, in one run."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import report, store

MIB = 1 << 20
BIG_BYTES = 1 << 30
SMALL, SMALL_BYTES = 10_000, 4096
RUNS = 3


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of one fetch, and the most memory beyond what the process had before."""

    seconds: float
    grown_bytes: int


def run() -> report.Section:
    """MiB/s to disk, files per second, and peak memory."""
    with tempfile.TemporaryDirectory(prefix="tms-bench-fetch-") as name:
        scratch = pathlib.Path(name)
        _make(scratch / "served" / "bench")
        disk_s = statistics.median(_write_s(scratch / "written") for _ in range(RUNS))
        with _serving(scratch / "served") as url:
            measured = {
                (who, what): _median(who, what, url, scratch, RUNS if what == "big" else 1)
                for what in ("big", "small")
                for who in ("sidecar", "boto3", "boto3-safe")
            }
    big = [_big_row(measured["sidecar", "big"], *each) for each in _references(measured, "big")]
    small = [_small_row(measured["sidecar", "small"], *each) for each in _references(measured, "small")]
    disk = _big_row(measured["sidecar", "big"], "the disk's own writes, synced", Measured(disk_s, 0))
    return report.Section(
        "Fetches from S3 on loopback to the disk",
        f"medians of {RUNS} runs for 1 GiB, one run for {SMALL:,} x {SMALL_BYTES} B; each in a process of its own. The "
        "sidecar hashes and syncs what it fetches; boto3 does not, but where it says so. Small files: 8 threads each",
        [*big, disk, *small],
    )


def _references(measured: dict[tuple[str, str], Measured], what: str) -> list[tuple[str, Measured]]:
    return [
        ("boto3.download_file", measured["boto3", what]),
        ("boto3.download_file, then sha256 and fsync", measured["boto3-safe", what]),
    ]


def _big_row(ours: Measured, name: str, other: Measured) -> report.Row:
    figure, reference = (BIG_BYTES / MIB / each.seconds for each in (ours, other))
    return report.Row(
        f"1 GiB object, against {name}",
        f"{figure:.0f} MiB/s, +{ours.grown_bytes / MIB:.0f} MiB",
        f"{reference:.0f} MiB/s" + (f", +{other.grown_bytes / MIB:.0f} MiB" if other.grown_bytes else ""),
        figure / reference,
    )


def _small_row(ours: Measured, name: str, other: Measured) -> report.Row:
    figure, reference = (SMALL / each.seconds for each in (ours, other))
    return report.Row(
        f"{SMALL:,} small objects, against {name}",
        f"{figure:.0f}/s, +{ours.grown_bytes / MIB:.0f} MiB",
        f"{reference:.0f}/s, +{other.grown_bytes / MIB:.0f} MiB",
        figure / reference,
    )


def _make(bucket: pathlib.Path) -> None:
    (bucket / "small").mkdir(parents=True)
    (bucket / "big").mkdir()
    block = os.urandom(64 * MIB)
    with (bucket / "big" / "weights").open("wb") as file:
        for _ in range(BIG_BYTES // len(block)):
            file.write(block)
    for number in range(SMALL):
        (bucket / "small" / f"{number}").write_bytes(block[number : number + SMALL_BYTES])


def _write_s(path: pathlib.Path) -> float:
    block = os.urandom(8 * MIB)
    begun = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(BIG_BYTES // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    spent_s = time.perf_counter() - begun
    path.unlink()
    return spent_s


@contextlib.contextmanager
def _serving(root: pathlib.Path) -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-m", "benchmarks.store", str(root)], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


def _median(who: str, what: str, url: str, scratch: pathlib.Path, runs: int) -> Measured:
    measured = [_measure(who, what, url, scratch / "target") for _ in range(runs)]
    return Measured(statistics.median(each.seconds for each in measured), max(each.grown_bytes for each in measured))


def _measure(who: str, what: str, url: str, target: pathlib.Path) -> Measured:
    argv = [sys.executable, "-m", "benchmarks.fetching", who, what, url, str(target)]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    shutil.rmtree(target)
    return Measured(**json.loads(said.splitlines()[-1]))


# In a process of its own.


def _client(who: str, what: str, url: str, target: pathlib.Path) -> None:
    work = {"sidecar": _sidecar, "boto3": _boto3, "boto3-safe": _boto3_safe}[who](what, url, target)
    before_bytes = _memory_bytes("VmRSS")
    begun = time.perf_counter()
    work()
    spent_s = time.perf_counter() - begun
    sys.stdout.write(json.dumps({"seconds": spent_s, "grown_bytes": _memory_bytes("VmHWM") - before_bytes}))


def _names(what: str) -> list[tuple[str, int]]:
    return [("weights", BIG_BYTES)] if what == "big" else [(f"{each}", SMALL_BYTES) for each in range(SMALL)]


def _sidecar(what: str, url: str, target: pathlib.Path) -> Callable[[], None]:
    from sidecar import values  # noqa: PLC0415 - each process has only what it measures
    from sidecar.cache import store as cache_store  # noqa: PLC0415
    from sidecar.fetching import fetch, progress  # noqa: PLC0415
    from sidecar.sources import s3  # noqa: PLC0415

    access = values.S3Access(endpoint_url=url, path_style=True, access_key_id="a-key-id", secret_access_key="a-secret")
    files = tuple(
        values.SourceFile(path=name, size_bytes=size, version=store.tag(name, size)) for name, size in _names(what)
    )
    model = values.Model(name="m", uri=f"s3://bench/{what}", files=files, source_digest="d", access=access)
    s3.Bucket(model.uri, access).close()
    kept = cache_store.Cache(target)
    return lambda: _done(fetch.fetch(kept, model, threading.Event(), progress.Progress(model.size_bytes)))


def _boto3(what: str, url: str, target: pathlib.Path, *, safe: bool = False) -> Callable[[], None]:
    import boto3  # noqa: PLC0415 - each process has only what it measures
    from boto3.s3 import transfer  # noqa: PLC0415
    from botocore import config  # noqa: PLC0415

    settings = config.Config(s3={"addressing_style": "path"}, max_pool_connections=16)
    client = boto3.client(
        "s3",
        endpoint_url=url,
        config=settings,
        region_name="us-east-1",
        aws_access_key_id="a-key-id",
        aws_secret_access_key="a-secret",
    )
    how = transfer.TransferConfig(use_threads=what == "big")
    target.mkdir()

    def one(name: str) -> None:
        client.download_file("bench", f"{what}/{name}", str(target / name), Config=how)
        if safe:
            _make_safe(target / name)

    def work() -> None:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            _done(list(pool.map(one, [name for name, _size in _names(what)])))

    return work


def _boto3_safe(what: str, url: str, target: pathlib.Path) -> Callable[[], None]:
    return _boto3(what, url, target, safe=True)


def _make_safe(path: pathlib.Path) -> None:
    import hashlib  # noqa: PLC0415 - of one of the two only

    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
        os.fsync(file.fileno())


def _done(_result: Any) -> None:
    """Nothing more is wanted of it."""


def _memory_bytes(name: str) -> int:
    """Of this process: VmRSS now, VmHWM the most since it began to run this program."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    _client(sys.argv[1], sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4]))
