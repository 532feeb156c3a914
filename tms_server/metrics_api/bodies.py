"""The documents of the API, as the Kubernetes API server and its clients expect them. Purely from values to JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

from tms_server.model import lease

Json = dict[str, Any]
GROUP = "external.metrics.k8s.io"
VERSION = "v1beta1"
GROUP_VERSION = f"{GROUP}/{VERSION}"
PREFIX = "tms_"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One value of a metric, and the labels that it is selected by."""

    kind: lease.MetricKind
    labels: Mapping[str, str]
    value_milli: int
    at: dt.datetime
    window: dt.timedelta


def metric_name(kind: lease.MetricKind) -> str:
    """What the metric is called in a HorizontalPodAutoscaler."""
    return PREFIX + kind


KINDS: Mapping[str, lease.MetricKind] = {metric_name(kind): kind for kind in lease.MetricKind}


def groups() -> Json:
    """All API groups: one."""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group()]}


def group() -> Json:
    """The API group by itself."""
    return {"kind": "APIGroup", "apiVersion": "v1", **_group()}


def resources() -> Json:
    """Every metric is a resource. With ``get`` alone no controller tries to list or delete them."""
    resource = {"singularName": "", "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": GROUP_VERSION,
        "resources": [{"name": name, **resource} for name in sorted(KINDS)],
    }


def values(found: Iterable[Series]) -> Json:
    """The answer to a query; an empty list says that there is no such metric now."""
    return {
        "kind": "ExternalMetricValueList",
        "apiVersion": GROUP_VERSION,
        "metadata": {},
        "items": [_value(each) for each in found],
    }


def status(code: int, reason: str, message: str) -> Json:
    """An error as Kubernetes says it."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _group() -> Json:
    version = {"groupVersion": GROUP_VERSION, "version": VERSION}
    return {"name": GROUP, "versions": [version], "preferredVersion": version}


def _value(each: Series) -> Json:
    return {
        "metricName": metric_name(each.kind),
        "metricLabels": dict(each.labels),
        "timestamp": each.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "windowSeconds": round(each.window.total_seconds()),
        "value": f"{each.value_milli}m",
    }
