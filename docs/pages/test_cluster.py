"""The page of what the test cluster is not, from the words of its own fake kubelet."""

from __future__ import annotations

import ast
import pathlib

KUBELET = pathlib.Path(__file__).resolve().parents[2] / "tests" / "kubernetes" / "cluster" / "kubelet" / "__main__.py"


def text() -> str:
    """The kubelet's own account of how it differs from a real one."""
    told = ast.get_docstring(ast.parse(KUBELET.read_text(encoding="utf-8")))
    assert told is not None
    opening = (
        "The tests run against a real kube-apiserver, controller-manager, scheduler, kube-proxy, etcd and CoreDNS. Only the "
        "nodes are not real. This page is the docstring of their kubelet, `tests/kubernetes/cluster/kubelet`."
    )
    return f"# How the test cluster differs from a real one\n\n{opening}\n\n{told.strip()}\n"
