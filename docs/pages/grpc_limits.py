"""The page of what a client of the own gRPC front may do, from the limits that hold it to that."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from docs.pages import markdown
from gpu_worker.grpc.native import limits as native_limits
from gpu_worker.http2 import limits as http2_limits
from gpu_worker.wire import intake

# Which flags change a limit.
_FLAGS = {
    "ping_strikes": "grpc-http2-max-ping-strikes",
    "ping_interval_s": "grpc-http2-min-recv-ping-interval-without-data",
    "keepalive_time_s": "grpc-keepalive-time",
    "keepalive_timeout_s": "grpc-keepalive-timeout",
    "keepalive_without_calls": "grpc-keepalive-permit-without-calls",
    "keepalive_pings": "grpc-http2-max-pings-without-data",
    "age_s": "grpc-max-connection-age",
    "age_grace_s": "grpc-max-connection-age-grace",
}
_OPENING = """\
# Limits of the own gRPC front

Generated from `gpu_worker/http2/limits.py` and `gpu_worker/grpc/native/limits.py`; `../grpc-front.md` says what becomes of a client that
reaches one. Each has a test that reaches it."""


def text() -> str:
    """Two tables, and the bounds that all fronts share."""
    bounds = intake.Bounds()
    shared = (
        f"All fronts of a worker together hold at most {bounds.requests} requests and {_size(bounds.body_bytes)} of their bodies; "
        "beyond that calls are refused with UNAVAILABLE."
    )
    parts = (_OPENING, "## Of a connection", "\n".join(_table(http2_limits.Limits)), "## Of a message")
    return "\n\n".join((*parts, "\n".join(_table(native_limits.Limits)), shared)) + "\n"


def _table(limits: Any) -> Iterator[str]:
    yield from ("| limit | default | meaning | flag |", "| --- | --- | --- | --- |")
    for field in dataclasses.fields(limits):
        flag = f"`--{_FLAGS[field.name]}`" if field.name in _FLAGS else ""
        words = markdown.cell(field.metadata["words"])
        yield f"| `{field.name}` | {_shown(field.name, field.default)} | {words} | {flag} |"


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value == math.inf:
        return "for ever"
    if name.endswith("_s") and not name.endswith("per_s"):
        return f"{value:g} s"
    return _size(value) if "bytes" in name else f"{value:,}"


def _size(value: int) -> str:
    for unit, step in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= step and value % step == 0:
            return f"{value // step} {unit}"
    return f"{value:,} bytes"
