"""The page of the Helm chart: its values from values.yaml, and the rights that it grants from its own templates.

The reason of each right is the comment above its rule, so that the table cannot say what the chart does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import helm_python
import yaml

from deploy.helm import documented
from docs.pages import markdown

_RELEASE, _NAMESPACE = "tms", "NAMESPACE"


def text() -> str:
    """The table of values, then that of permissions."""
    opening = (
        "Generated from `deploy/helm/tms`. A key that is not here is refused, as is a wrong key inside of an object "
        "(`values.schema.json`). [Installing](../install.md) says which of them matter first."
    )
    rights = (
        "What the chart grants to the service account of the server, in the namespace of the workers unless said "
        "otherwise. Worker pods hold no right at all: they carry no token for Kubernetes."
    )
    return "\n".join(
        [
            *("# Values of the Helm chart", "", opening, ""),
            *("| value | default | meaning |", "| --- | --- | --- |", *_values(), ""),
            *("## Permissions", "", rights, ""),
            *("| where | resources | verbs | why |", "| --- | --- | --- | --- |", *_permissions()),
        ]
    ) + "\n"  # fmt: skip


def _values() -> Iterator[str]:
    for each in documented.values():
        default = each.default if isinstance(each.default, str) else json.dumps(each.default)
        shown = f"`{default}`" if default not in ("", "{}", "[]") else ""
        yield f"| `{each.path}` | {markdown.cell(shown)} | {markdown.cell(each.meaning)} |"


def _permissions() -> Iterator[str]:
    for manifest in _manifests():
        role = yaml.safe_load(manifest)
        if not role or role["kind"] not in ("Role", "ClusterRole"):
            continue
        for rule, why in zip(role["rules"], _reasons(manifest), strict=True):
            cells = (_where(role), _resources(rule), ", ".join(rule["verbs"]), why)
            yield "| " + " | ".join(markdown.cell(each) for each in cells) + " |"


def _manifests() -> Iterator[str]:
    """Each object of a release that grants all that can be granted, as text with its comments."""
    with helm_python.Chart.load(documented.CHART) as chart:
        files = chart.render({}, name=_RELEASE, namespace=_NAMESPACE.lower())
    for name in sorted(files, reverse=True):
        if "/rbac" in name:
            yield from files[name].split("\n---\n")


def _reasons(manifest: str) -> Iterator[str]:
    """The comment above each rule."""
    comment: list[str] = []
    for line in map(str.strip, manifest.partition("rules:")[2].splitlines()):
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif line.startswith("- apiGroups"):
            yield " ".join(comment)
            comment = []


def _where(role: dict[str, Any]) -> str:
    if role["kind"] == "Role":
        return "namespace"
    held_by_kubernetes = role["metadata"]["name"].endswith(":metrics-reader")
    return "cluster, for the controller of Kubernetes" if held_by_kubernetes else "cluster"


def _resources(rule: dict[str, Any]) -> str:
    groups = [f".{group}" if group else "" for group in rule["apiGroups"]]
    named = [f"`{resource}{group}`" for group in groups for resource in rule["resources"]]
    only = [f"`{name}`" for name in rule.get("resourceNames", ())]
    return ", ".join(named) + (f" named {', '.join(only)}" if only else "")
