"""Writes the reference pages from their sources: ``python -m docs.generate [DIRECTORY]``."""

from __future__ import annotations

import pathlib
import sys

from docs.pages import (
    api,
    chart,
    cli,
    conformance,
    grpc_limits,
    http2,
    lease_states,
    metrics,
    model_config,
    openapi,
    settings,
    sidecar,
    test_cluster,
    worker,
)

HERE = pathlib.Path(__file__).resolve().parent
PAGES = {
    "api.md": api.text,
    "chart-values.md": chart.text,
    "cli.md": cli.text,
    "conformance.md": conformance.text,
    "grpc-limits.md": grpc_limits.text,
    "http2-conformance.md": http2.text,
    "lease-states.md": lease_states.text,
    "openapi.json": openapi.text,
    "metrics.md": metrics.text,
    "model-config.md": model_config.text,
    "settings.md": settings.text,
    "sidecar-flags.md": sidecar.text,
    "test-cluster.md": test_cluster.text,
    "worker-flags.md": worker.text,
}


def generate(into: pathlib.Path = HERE) -> None:
    """Writes each page to reference/ below `into`."""
    (into / "reference").mkdir(parents=True, exist_ok=True)
    for name, text in PAGES.items():
        (into / "reference" / name).write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    generate(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
