"""The page of the control plane's metrics, from a registry of them."""

from __future__ import annotations

from docs.pages import markdown
from tms_server.observability import metrics


def text() -> str:
    """One table of all families."""
    opening = (
        "tms-server serves these at `/metrics` of its metrics listener; tms-worker serves the `nv_inference_*` families "
        "that dashboards for Triton know at its own. Labels never name a lease, a model or a caller. Where it serves the "
        "metrics API there is `tms_metrics_api_holder` too: whose external.metrics.k8s.io is in the cluster. The table is "
        "generated from `tms_server/observability/metrics.py`."
    )
    lines = ["# Metrics of tms-server", "", opening, "", "| metric | type | meaning |", "| --- | --- | --- |"]
    for family in metrics.Metrics().registry.collect():
        name = family.name + "_total" * (family.type == "counter")
        lines.append(f"| `{name}` | {family.type} | {markdown.cell(family.documentation)} |")
    return "\n".join(lines) + "\n"
