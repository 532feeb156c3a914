"""Reads the worker's metrics port: what statistics do not tell.

Decides what the families mean: those of tms-worker where they are there, else what an unmodified Triton says. What a
server does not say is absent, never zero. Must never wait without a bound.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from sidecar import http_call

_SCRAPE_S = 2.0
_LINE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")

IN_FLIGHT = "tms_inference_in_flight"
LATENCY = "tms_inference_request_duration_seconds_bucket"
PENDING = "nv_inference_pending_request_count"
UTILIZATION = "nv_gpu_utilization"
_WANTED = (IN_FLIGHT, LATENCY, PENDING, UTILIZATION)

Bucket = tuple[int, int]
"""Greatest time in microseconds, 0 for the last bucket; and how many requests took at most that."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the page said, by model, summed over versions.

    `in_flight` counts requests in the server where `in_flight_known`, else only those that wait for an instance.
    """

    in_flight: Mapping[str, int] = dataclasses.field(default_factory=dict)
    in_flight_known: bool = False
    latency: Mapping[str, tuple[Bucket, ...]] = dataclasses.field(default_factory=dict)
    gpu_utilization_permille: int | None = None


NOTHING = Page()


def parse(text: str) -> Page:
    """Of a page in Prometheus' text format; lines that mean nothing here are passed over."""
    in_flight: collections.Counter[str] = collections.Counter()
    pending: collections.Counter[str] = collections.Counter()
    latency: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    busiest: float | None = None
    known = False
    for name, labels, value in _samples(text):
        model = labels.get("model", "")
        if name == IN_FLIGHT:
            known = True
            in_flight[model] += int(value)
        elif name == PENDING:
            pending[model] += int(value)
        elif name == UTILIZATION:
            busiest = max(busiest or 0.0, value)
        elif (upper_us := _upper_us(labels.get("le", ""))) is not None:
            latency[model][upper_us] += int(value)
    return Page(
        in_flight=dict(in_flight if known else pending),
        in_flight_known=known,
        latency={model: _ascending(counts) for model, counts in latency.items()},
        gpu_utilization_permille=None if busiest is None else min(max(round(busiest * 1000), 0), 1000),
    )


async def scrape(host: str, port: int, headers: Mapping[str, str]) -> Page:
    """The page at /metrics, NOTHING where there is none to be had within a bound."""
    try:
        async with asyncio.timeout(_SCRAPE_S):
            status, body = await http_call.perform(http_call.Call(host, port, "/metrics", headers=headers))
    except http_call.FAILURES:
        return NOTHING
    return parse(body.decode("utf-8", "replace")) if status == 200 else NOTHING


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for line in text.splitlines():
        if not line.startswith(_WANTED) or (found := _LINE.match(line)) is None or found[1] not in _WANTED:
            continue
        value = _number(found[3])
        if value is not None:
            labels = {name: _ESCAPED.sub(_unescaped, said) for name, said in _LABEL.findall(found[2] or "")}
            yield found[1], labels, value


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _unescaped(found: re.Match[str]) -> str:
    return "\n" if found[1] == "n" else found[1]


def _upper_us(le: str) -> int | None:
    """0 for the last bucket, None for what is no bound."""
    if le == "+Inf":
        return 0
    seconds = _number(le)
    return None if seconds is None or not round(seconds * 1e6) else round(seconds * 1e6)


def _ascending(counts: Mapping[int, int]) -> tuple[Bucket, ...]:
    return tuple(sorted(counts.items(), key=lambda bucket: bucket[0] or math.inf))
