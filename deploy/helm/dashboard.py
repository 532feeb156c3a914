"""Makes the Grafana dashboard of the chart. Each panel is a title, a unit and its queries; the layout is worked out."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from deploy.helm import documented

FILE = documented.CHART / "monitoring" / "dashboard.json"
_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 8
_SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """One graph: queries by their legend."""

    title: str
    unit: str
    queries: dict[str, str]


PANELS = (
    Panel("Leases", "short", {"{{state}}": 'max by (state) (tms_leases{namespace="$namespace"})'}),
    Panel(
        "Leases per second",
        "short",
        {
            "created": 'sum(rate(tms_leases_created_total{namespace="$namespace"}[5m]))',
            "ended: {{reason}}": 'sum by (reason) (rate(tms_lease_ends_total{namespace="$namespace"}[5m]))',
        },
    ),
    Panel(
        "Creation to ACTIVE",
        "s",
        {
            f"p{quantile}": f"histogram_quantile(0.{quantile}, sum by (le) "
            '(rate(tms_lease_to_active_seconds_bucket{namespace="$namespace"}[10m])))'
            for quantile in (50, 90, 99)
        },
    ),
    Panel("Worker groups", "short", {"{{pool}}": 'max by (pool) (tms_workers{namespace="$namespace"})'}),
    Panel(
        "Booked and bookable memory",
        "bytes",
        {
            "booked {{pool}}": 'max by (pool) (tms_booked_bytes{namespace="$namespace"})',
            "bookable {{pool}}": 'max by (pool) (tms_capacity_bytes{namespace="$namespace"})',
        },
    ),
    Panel("Sidecars connected", "short", {"sidecars": 'sum(tms_sidecars_connected{namespace="$namespace"})'}),
    Panel(
        "Calls per second",
        "reqps",
        {"{{method}} {{code}}": 'sum by (method, code) (rate(tms_rpcs_total{namespace="$namespace"}[5m]))'},
    ),
    Panel(
        "Time to answer, p99",
        "s",
        {
            "{{method}}": "histogram_quantile(0.99, sum by (le, method) "
            '(rate(tms_rpc_seconds_bucket{namespace="$namespace"}[5m])))'
        },
    ),
    Panel(
        "Failed passes per second",
        "short",
        {"{{loop}}": 'sum by (loop) (rate(tms_pass_failures_total{namespace="$namespace"}[5m]))'},
    ),
    Panel(
        "Inferences per second",
        "reqps",
        {"{{model}}": 'sum by (model) (rate(nv_inference_request_success{namespace="$namespace"}[1m]))'},
    ),
    Panel(
        "Time in the queue, mean",
        "µs",
        {
            "{{model}}": 'sum by (model) (rate(nv_inference_queue_duration_us{namespace="$namespace"}[1m]))'
            ' / sum by (model) (rate(nv_inference_request_success{namespace="$namespace"}[1m]))'
        },
    ),
    Panel(
        "Failed inferences per second",
        "reqps",
        {"{{model}}": 'sum by (model) (rate(nv_inference_request_failure{namespace="$namespace"}[1m]))'},
    ),
)


def text() -> str:
    """The dashboard as Grafana imports it."""
    made = {
        "uid": "tms",
        "title": "TMS",
        "tags": ["tms"],
        "schemaVersion": 39,
        "time": {"from": "now-3h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [_variable("source", "datasource", "prometheus"), _namespaces()]},
        "panels": [_panel(number, each) for number, each in enumerate(PANELS)],
    }
    return json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _variable(name: str, kind: str, query: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "query": query, "label": name}


def _namespaces() -> dict[str, Any]:
    query = "label_values(tms_sidecars_connected, namespace)"
    return {**_variable("namespace", "query", query), "datasource": _SOURCE, "refresh": 2}


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "title": panel.title,
        "type": "timeseries",
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend, "datasource": _SOURCE}
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }
