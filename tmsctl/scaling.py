"""Decides how growth is written: ``in_flight=4``, ``queue_time=20ms``, ``latency=200ms@p95``. Pure: text in, messages out.

Every parser raises ValueError with a sentence that says what to write instead.
"""

from __future__ import annotations

import datetime as dt
import fractions
import re
from collections.abc import Callable, Mapping

from protos.tms.v1 import lease_pb2
from tmsctl import values

MILLI = 1000
KINDS: Mapping[str, lease_pb2.ScalingMetricKind.ValueType] = {
    name.removeprefix("SCALING_METRIC_KIND_").lower(): number
    for name, number in lease_pb2.ScalingMetricKind.items()
    if number
}
QUANTILES: Mapping[str, int] = {"p50": 500, "p90": 900, "p95": 950, "p99": 990}
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,3})?")
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,3})?)(%?)")


def parse_metric(text: str) -> lease_pb2.ScalingMetric:
    """Reads ``KIND=TARGET``, for latency with ``@p50``, ``@p90``, ``@p95`` or ``@p99`` behind."""
    kind, equals, target = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} lacks a target; write KIND=TARGET, such as in_flight=4")
    target, at, quantile = target.partition("@")
    return metric(kind, target, quantile if at else "")


def metric(kind: str, target: str, quantile: str = "") -> lease_pb2.ScalingMetric:
    """One metric from its parts, each as people write it."""
    values.require_known(kind, KINDS)
    if quantile and kind != "latency":
        raise ValueError(f"{kind} has no quantile; leave @{quantile} out")
    if quantile:
        values.require_known(quantile, QUANTILES)
    milli = _TARGETS.get(kind, _number)(target)
    if milli <= 0:
        raise ValueError(f"{target!r} is no target; write more than 0")
    return lease_pb2.ScalingMetric(
        kind=KINDS[kind], target_milli=milli, quantile_permille=QUANTILES[quantile] if quantile else 0
    )


def format_metric(one: lease_pb2.ScalingMetric) -> str:
    """As `parse_metric` reads it."""
    kind = next((name for name, number in KINDS.items() if number == one.kind), "unknown")
    quantile = next((f"@{name}" for name, permille in QUANTILES.items() if permille == one.quantile_permille), "")
    return f"{kind}={_FORMATS.get(kind, _plain)(one.target_milli)}{quantile}"


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is no target; write a number, in thousandths at the finest")
    return int(fractions.Fraction(text) * MILLI)


def _milliseconds(text: str) -> int:
    return values.parse_duration(text) // dt.timedelta(microseconds=1)


def _share(text: str) -> int:
    found = _SHARE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no share; write one like 0.8 or 80%")
    milli = int(fractions.Fraction(found[1]) * (MILLI // 100 if found[2] else MILLI))
    if milli > MILLI:
        raise ValueError(f"{text!r} is more than the whole; write one like 0.8 or 80%")
    return milli


def _bytes(text: str) -> int:
    return min(values.parse_size(text), values.MAX_INT64 // MILLI) * MILLI


def _plain(milli: int) -> str:
    return f"{milli // MILLI}.{milli % MILLI:03}".rstrip("0").rstrip(".")


_TARGETS: Mapping[str, Callable[[str], int]] = {
    "queue_time": _milliseconds,
    "latency": _milliseconds,
    "gpu_utilization": _share,
    "model_memory": _bytes,
}
_FORMATS: Mapping[str, Callable[[int], str]] = {
    "queue_time": lambda milli: values.format_duration(dt.timedelta(microseconds=milli)),
    "latency": lambda milli: values.format_duration(dt.timedelta(microseconds=milli)),
    "model_memory": lambda milli: values.format_size_exact(milli // MILLI),
}
