"""Releases of the chart on the test cluster, by Helm itself, and what is in the cluster because of them."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
from typing import Any

import helm_python
import kubernetes

from deploy.helm import documented

Object = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Helm:
    """Releases in one namespace. Nothing here waits for pods unless it says so."""

    config: helm_python.Config
    namespace: str

    def install(self, name: str, values: Object, *, wait: str = "hookOnly", timeout: int = 60) -> None:
        self.config.install(str(documented.CHART), name, values, namespace=self.namespace, wait=wait, timeout=timeout)

    def upgrade(self, name: str, values: Object, *, wait: str = "hookOnly", timeout: int = 60) -> None:
        self.config.upgrade(str(documented.CHART), name, values, namespace=self.namespace, wait=wait, timeout=timeout)

    def rollback(self, name: str, version: int) -> None:
        self.config.rollback(name, version=version, wait="hookOnly", timeout=60)

    def uninstall(self, name: str) -> None:
        self.config.uninstall(name, wait="hookOnly", timeout=60)

    def revisions(self, name: str) -> list[tuple[int, str]]:
        return [(each["revision"], each["status"]) for each in self.config.history(name)]


@contextlib.contextmanager
def helm(kubeconfig: str, namespace: str) -> collections.abc.Iterator[Helm]:
    """Helm as the administrator. What was installed by it is gone afterwards, cluster-wide objects included."""
    with helm_python.Config(kubeconfig_path=kubeconfig, namespace=namespace) as config:
        yield Helm(config, namespace)
        for release in config.list(all_states=True):
            config.uninstall(release["name"], wait="hookOnly", timeout=60)


def labelled(api: kubernetes.client.ApiClient, release: str, namespace: str) -> set[tuple[str, str]]:
    """Kind and name of every object that carries the release's label, in its namespace and outside of all."""
    dynamic = kubernetes.dynamic.DynamicClient(api)  # type: ignore[no-untyped-call]  # theirs
    selector = f"app.kubernetes.io/part-of=tms,app.kubernetes.io/instance={release}"
    found: set[tuple[str, str]] = set()
    for version, kind in KINDS:
        resource = dynamic.resources.get(api_version=version, kind=kind)
        where = {"namespace": namespace} if resource.namespaced else {}
        listed = resource.get(label_selector=selector, **where).to_dict()
        found |= {(kind, each["metadata"]["name"]) for each in listed["items"] if _of(namespace, each)}
    return found


def _of(namespace: str, found: Object) -> bool:
    """Whether an object is of a release in that namespace, and not of one of the same name elsewhere."""
    release = found["metadata"].get("annotations", {}).get("meta.helm.sh/release-namespace")
    return bool(release == namespace)


KINDS = (
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
    ("v1", "PersistentVolumeClaim"),
    ("apps/v1", "Deployment"),
    ("batch/v1", "Job"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("apiregistration.k8s.io/v1", "APIService"),
)
