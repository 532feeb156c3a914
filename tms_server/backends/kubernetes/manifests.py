"""From what is wanted to objects of the cluster, purely; the same input gives the same object."""

from __future__ import annotations

import base64
import dataclasses
import math
from typing import Any

from tms_server.backends.kubernetes import covers, names, pod, quantities
from tms_server.backends.kubernetes import options as options_module
from tms_server.model import ids, lease
from tms_server.ports import backend

Json = dict[str, Any]
LONGEST_WINDOW_S = 3600
LONGEST_PERIOD_S = 1800


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupManifests:
    """Objects of one group; no autoscaler where it does not scale."""

    secret: Json
    deployment: Json
    scaler: Json | None


def of_group(spec: backend.LaunchSpec, options: options_module.Options) -> GroupManifests:
    """All that a group needs. The Deployment says no replicas where the autoscaler owns them: see `with_replicas`."""
    return GroupManifests(
        secret=_secret(spec, options),
        deployment=_deployment(spec, options),
        scaler=None if spec.scaling is None else _scaler(spec, spec.scaling, options),
    )


def with_replicas(deployment: Json, replicas: int) -> Json:
    """The same Deployment, told its replicas."""
    return {**deployment, "spec": {**deployment["spec"], "replicas": replicas}}


def of_owner(owner: str, lease_id: ids.LeaseId, options: options_module.Options) -> tuple[Json, Json]:
    """The Service of a lease or a name and its headless twin, both leading to the workers that serve the lease."""
    service = names.service_of(owner)
    ports = (("http", names.HTTP_PORT), ("grpc", names.GRPC_PORT), ("metrics", names.METRICS_PORT))
    body: Json = {
        "type": "ClusterIP",
        "selector": {names.INSTALLATION: options.installation_id, names.serving_label(lease_id): names.SERVING},
        "ports": [{"name": name, "port": port, "protocol": "TCP", "targetPort": port} for name, port in ports],
    }
    marks = {**names.marks(options.installation_id), **names.owner_marks(owner, lease_id)}
    plain = _marked({"apiVersion": "v1", "kind": "Service", "metadata": _named(service, options, marks), "spec": body})
    twin = _named(service + names.HEADLESS, options, marks)
    return plain, _marked({**plain, "metadata": twin, "spec": {**body, "clusterIP": "None"}})


def of_budget(options: options_module.Options) -> Json:
    """Holds evictions of workers back: the server moves them itself."""
    return _marked(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": _named(budget_name(options), options, names.marks(options.installation_id)),
            "spec": {
                "maxUnavailable": 0,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": names.marks(options.installation_id)},
            },
        }
    )


def budget_name(options: options_module.Options) -> str:
    return f"{options.installation_id}-workers"


def _secret(spec: backend.LaunchSpec, options: options_module.Options) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _named(spec.group_id, options, _group_marks(spec, options)),
        "type": "Opaque",
        "data": {"token": base64.b64encode(spec.token.encode()).decode()},
    }


def _deployment(spec: backend.LaunchSpec, options: options_module.Options) -> Json:
    profile = pod.profile_of(options, spec.worker)
    # Ours last: an administrator's label never takes a pod out of its group.
    labels = {**profile.labels, **_group_marks(spec, options)}
    body: Json = {
        "selector": {"matchLabels": {names.GROUP: spec.group_id}},
        "revisionHistoryLimit": 1,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "paused": False,
        "template": {
            "metadata": {"labels": labels, "annotations": dict(profile.annotations)},
            "spec": pod.pod(spec, options),
        },
    }
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _named(spec.group_id, options, _group_marks(spec, options)),
        "spec": body if spec.scaling is not None else {**body, "replicas": spec.replicas},
    }
    return _marked(manifest)


def _scaler(spec: backend.LaunchSpec, scaling: backend.Scaling, options: options_module.Options) -> Json:
    asked = scaling.autoscaling
    marks = {**_group_marks(spec, options), names.LEASE: scaling.lease_id}
    return _marked(
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": _named(spec.group_id, options, marks),
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": spec.group_id},
                "minReplicas": asked.min_replicas,
                "maxReplicas": asked.max_replicas,
                "metrics": [_metric(scaling.lease_id, each) for each in asked.metrics],
                "behavior": _behavior(asked, scaling.load_s),
            },
        }
    )


def _metric(lease_id: ids.LeaseId, metric: lease.ScalingMetric) -> Json:
    chosen: dict[str, str] = {"lease": lease_id}
    if metric.quantile_permille:
        chosen["quantile"] = str(metric.quantile_permille)
    amount = quantities.of_milli(metric.target_milli)
    whole = {"type": "Value", "value": amount}
    return {
        "type": "External",
        "external": {
            "metric": {"name": f"tms_{metric.kind}", "selector": {"matchLabels": chosen}},
            "target": whole if metric.kind.of_whole else {"type": "AverageValue", "averageValue": amount},
        },
    }


def _behavior(asked: lease.Autoscaling, load_s: float) -> Json:
    """Growth waits at least one load: what it added before must have had time to help."""
    behavior = asked.behavior
    period_s = min(LONGEST_PERIOD_S, max(1, math.ceil(behavior.period.total_seconds())))
    up_s = max(load_s, behavior.scale_up_window.total_seconds() if behavior.scale_up_window is not None else 0)
    up: Json = {"stabilizationWindowSeconds": _window(up_s)}
    down: Json = {}
    if behavior.scale_down_window is not None:
        down["stabilizationWindowSeconds"] = _window(behavior.scale_down_window.total_seconds())
    for rules, step in ((up, behavior.max_step_up), (down, behavior.max_step_down)):
        # As many as there may be is no bound; saying nothing would mean Kubernetes' own.
        policy = {"type": "Pods", "value": step or max(1, asked.max_replicas), "periodSeconds": period_s}
        rules |= {"selectPolicy": "Max", "policies": [policy]}
    return {"scaleUp": up, "scaleDown": down}


def _window(seconds: float) -> int:
    return min(LONGEST_WINDOW_S, math.ceil(seconds))


def _group_marks(spec: backend.LaunchSpec, options: options_module.Options) -> dict[str, str]:
    marks = names.marks(options.installation_id)
    return {**marks, **names.tenant_mark(spec.namespace), names.GROUP: spec.group_id}


def _named(name: str, options: options_module.Options, labels: dict[str, str]) -> Json:
    return {"name": name, "namespace": options.namespace, "labels": labels}


def _marked(manifest: Json) -> Json:
    annotations = {names.APPLIED: covers.digest(manifest)}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}
