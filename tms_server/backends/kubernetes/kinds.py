"""The kinds of objects that the backend reads or writes, and what it must be allowed to do with them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One resource of the API. `verbs` are those without which the backend cannot work."""

    kind: str
    group: str
    version: str
    plural: str
    verbs: tuple[str, ...]
    namespaced: bool = True
    optional: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str, name: str = "") -> str:
        """Address below the API server's."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if self.namespaced else ""
        return f"{root}{scope}/{self.plural}" + (f"/{name}" if name else "")


_READ = ("list", "watch")
_OWN = ("get", "list", "watch", "create", "patch", "delete")

DEPLOYMENTS = Kind(kind="Deployment", group="apps", version="v1", plural="deployments", verbs=_OWN)
REPLICASETS = Kind(kind="ReplicaSet", group="apps", version="v1", plural="replicasets", verbs=(*_READ, "delete"))
PODS = Kind(kind="Pod", group="", version="v1", plural="pods", verbs=(*_READ, "patch", "delete"))
SERVICES = Kind(kind="Service", group="", version="v1", plural="services", verbs=_OWN)
SLICES = Kind(kind="EndpointSlice", group="discovery.k8s.io", version="v1", plural="endpointslices", verbs=_READ)
SECRETS = Kind(kind="Secret", group="", version="v1", plural="secrets", verbs=_OWN)
EVENTS = Kind(kind="Event", group="", version="v1", plural="events", verbs=_READ)
SCALERS = Kind(
    kind="HorizontalPodAutoscaler", group="autoscaling", version="v2", plural="horizontalpodautoscalers", verbs=_OWN
)
BUDGETS = Kind(kind="PodDisruptionBudget", group="policy", version="v1", plural="poddisruptionbudgets", verbs=_OWN)
NODES = Kind(kind="Node", group="", version="v1", plural="nodes", verbs=_READ, namespaced=False, optional=True)
LOGS = Kind(kind="Pod", group="", version="v1", plural="pods/log", verbs=("get",))

WRITTEN = (DEPLOYMENTS, SERVICES, SECRETS, SCALERS, BUDGETS)
ALL = (*WRITTEN, REPLICASETS, PODS, SLICES, EVENTS, NODES, LOGS)


def of(kind: str) -> Kind:
    """The kind of a manifest."""
    return next(each for each in WRITTEN if each.kind == kind)
