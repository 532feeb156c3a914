"""Alerts and the dashboard ask for metrics that exist, by labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import yaml

from deploy.helm import dashboard, documented
from tests.unit.deploy import charts
from tms_server.observability import metrics

WORKERS = frozenset(
    re.findall(r'"(nv_inference_\w+)"', (documented.CHART.parents[2] / "gpu_worker/metrics.py").read_text())
)
ON_TARGETS = {"namespace", "instance", "pod", "le"}
RULES = yaml.safe_load((documented.CHART / "monitoring" / "alerts.yaml").read_text())["groups"][0]["rules"]


def test_the_dashboard_is_what_its_source_says() -> None:
    assert dashboard.FILE.read_text() == dashboard.text(), "run `python -m deploy.generate`"


def test_every_query_names_metrics_that_exist() -> None:
    known = _served() | WORKERS
    for query in _queries():
        named = set(re.findall(r"\b((?:tms|nv)_\w+)", query))
        assert named, query
        assert named <= known, query


def test_every_query_is_grouped_by_labels_that_its_metrics_have() -> None:
    labels = {label for family in metrics.Metrics().registry._names_to_collectors.values() for label in _labels(family)}
    for query in _queries():
        for group in re.findall(r"by \(([^)]*)\)", query):
            assert set(group.replace(" ", "").split(",")) <= labels | ON_TARGETS | {"model"}, query
        assert query.count("(") == query.count(")")


def test_every_alert_says_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"\d+m", rule["for"])


def test_it_is_noticed_when_no_server_is_there_to_say_so() -> None:
    (alone,) = (rule for rule in RULES if rule["alert"] == "TmsNobodyLeads")
    assert "absent(tms_leads)" in alone["expr"]


def test_the_chart_carries_both_unchanged() -> None:
    objects = charts.render(charts.MATRIX["monitors"])
    assert charts.only(objects, "PrometheusRule", "tms")["spec"]["groups"][0]["rules"] == RULES
    shown = charts.only(objects, "ConfigMap", "tms-dashboard")["data"]["tms.json"]
    assert json.loads(shown) == json.loads(dashboard.text())


def _queries() -> Iterator[str]:
    yield from (str(rule["expr"]) for rule in RULES)
    yield from (query for panel in dashboard.PANELS for query in panel.queries.values())


def _served() -> frozenset[str]:
    return frozenset(metrics.Metrics().registry._names_to_collectors)


def _labels(collector: object) -> tuple[str, ...]:
    return tuple(getattr(collector, "_labelnames", ()))
