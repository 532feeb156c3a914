"""The pod of a worker group: worker, sidecar, volumes, probes, and the administrator's shape around them."""

from __future__ import annotations

import math
from typing import Any

from tms_server.backends.kubernetes import names, quantities
from tms_server.backends.kubernetes import options as options_module
from tms_server.model import resources
from tms_server.ports import backend

Json = dict[str, Any]

_PATIENT = "?patience_s=3"
_SHARED_CACHE = "/tms/cache"
# Beside the models, so that a model costs its bytes once: hard links do not cross volumes.
_OWN_CACHE = "/tms/models/.cache"
_MODELS = {"name": "models", "mountPath": "/tms/models"}
_TOKEN = {"name": "token", "mountPath": "/tms/token", "readOnly": True}
_SCRATCH = {"name": "scratch", "mountPath": "/tmp"}  # noqa: S108 - the container's own, an emptyDir
_READABLE = 0o444
_STOP_S = 5
"""Beside the age of connections, what a worker that stops may take to end."""


def profile_of(options: options_module.Options, worker: resources.WorkerSpec) -> options_module.Profile:
    """The shape that a worker asks for; KeyError for an unknown one."""
    return options.profiles[worker.profile or options_module.DEFAULT_PROFILE]


def pod(spec: backend.LaunchSpec, options: options_module.Options) -> Json:
    """The pod's spec."""
    profile = profile_of(options, spec.worker)
    shape = {
        "serviceAccountName": profile.service_account,
        "nodeSelector": dict(profile.node_selector),
        "affinity": dict(profile.affinity),
        "topologySpreadConstraints": [_spread(spec, each) for each in profile.topology_spread],
        "runtimeClassName": profile.runtime_class,
        "priorityClassName": profile.priority_class,
        "imagePullSecrets": [{"name": each} for each in profile.image_pull_secrets],
    }
    return {
        **{key: value for key, value in shape.items() if value},
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": profile.termination_grace_s,
        "tolerations": [*map(dict, profile.tolerations), *_lost_node(profile)],
        "securityContext": _pod_security(profile),
        "initContainers": [_sidecar(spec, options, profile)],
        "containers": [_worker(spec, options, profile)],
        "volumes": _volumes(spec, options, profile),
    }


def _worker(spec: backend.LaunchSpec, options: options_module.Options, profile: options_module.Profile) -> Json:
    program = options.programs[spec.worker.command or options.default_program]
    return {
        "name": "worker",
        "image": spec.worker.image or program.image,
        **_optional(imagePullPolicy=profile.image_pull_policy, command=list(program.command)),
        "args": list(program.args),
        "env": _environment(profile),
        "ports": [
            {"name": name, "containerPort": port, "protocol": "TCP"}
            for name, port in (("http", names.HTTP_PORT), ("grpc", names.GRPC_PORT), ("metrics", names.METRICS_PORT))
        ],
        "resources": _worker_resources(spec.worker, options, profile),
        "startupProbe": _probe(f"/startedz{_PATIENT}", every_s=1, failures=profile.start_bound_s),
        "livenessProbe": _probe("/workerlivez", every_s=5, failures=6),
        "readinessProbe": _probe(f"/readyz{_PATIENT}", every_s=1, failures=2),
        "lifecycle": {"preStop": {"httpGet": _get(f"/drain?timeout_s={_drain_s(options, profile)}")}},
        "securityContext": _container_security(),
        "volumeMounts": [_MODELS, _TOKEN, _SCRATCH],
    }


def _sidecar(spec: backend.LaunchSpec, options: options_module.Options, profile: options_module.Profile) -> Json:
    reserved = {
        "cpu": quantities.of_milli(profile.sidecar_cpu_milli),
        "memory": quantities.of_bytes(profile.sidecar_memory_bytes),
    }
    return {
        "name": "sidecar",
        "image": options.sidecar_image,
        **_optional(imagePullPolicy=profile.image_pull_policy),
        "restartPolicy": "Always",
        "args": _sidecar_args(spec, options, profile),
        "env": _environment(profile),
        "ports": [{"name": "health", "containerPort": names.HEALTH_PORT, "protocol": "TCP"}],
        "resources": {"requests": reserved, "limits": {"memory": reserved["memory"]}},
        # No startup probe: the worker's container would wait for it.
        "livenessProbe": _probe("/livez", every_s=5, failures=6),
        "securityContext": _container_security(),
        "volumeMounts": _sidecar_mounts(options, profile),
    }


def _sidecar_args(
    spec: backend.LaunchSpec, options: options_module.Options, profile: options_module.Profile
) -> list[str]:
    args = [
        f"--server={options.dial}",
        f"--worker-id={spec.group_id}",
        "--replica-id=$(POD_NAME)",
        "--token-file=/tms/token/token",
        f"--worker-endpoint=$(POD_IP):{names.HTTP_PORT}:{names.GRPC_PORT}:{names.METRICS_PORT}",
        "--model-repository=/tms/models",
        "--data-dir=/tms/state",
        f"--cache-dir={_SHARED_CACHE if _is_shared(profile.cache) else _OWN_CACHE}",
        f"--model-stay={math.ceil(options.connection_age_s * 1.1)}",
        "--health-address=$(POD_IP)",
        f"--health-port={names.HEALTH_PORT}",
    ]
    if profile.cache.size_bytes:
        args.append(f"--cache-budget={_budget_bytes(profile.cache)}")
    return [*args, "--server-ca=/tms/ca/ca.crt"] if options.ca_config_map else args


def _budget_bytes(cache: options_module.Cache) -> int:
    """A pod that goes beyond the bound of its own volume is evicted: the sidecar gives models up before."""
    return cache.size_bytes if _is_shared(cache) else cache.size_bytes * 19 // 20


def _sidecar_mounts(options: options_module.Options, profile: options_module.Profile) -> list[Json]:
    mounts: list[Json] = [
        _MODELS,
        _TOKEN,
        _SCRATCH,
        {"name": "state", "mountPath": "/tms/state"},
    ]
    if _is_shared(profile.cache):
        mounts.append({"name": "cache", "mountPath": _SHARED_CACHE})
    if options.ca_config_map:
        mounts.append({"name": "ca", "mountPath": "/tms/ca", "readOnly": True})
    if profile.token_audience:
        mounts.append({"name": "store-token", "mountPath": "/tms/store-token", "readOnly": True})
    for number, folder in enumerate(options.folders):
        mounts.append({"name": f"folder-{number}", "mountPath": folder.path, "readOnly": True})
    return mounts


def _volumes(spec: backend.LaunchSpec, options: options_module.Options, profile: options_module.Profile) -> list[Json]:
    volumes: list[Json] = [
        {"name": "models", "emptyDir": _bound(profile.cache)},
        {"name": "scratch", "emptyDir": {}},
        {"name": "state", "emptyDir": {}},
        {"name": "token", "secret": {"secretName": spec.group_id, "defaultMode": _READABLE}},
    ]
    if _is_shared(profile.cache):
        volumes.append({"name": "cache", **_cache(profile.cache)})
    if options.ca_config_map:
        volumes.append({"name": "ca", "configMap": {"name": options.ca_config_map}})
    if profile.token_audience:
        token = {"audience": profile.token_audience, "expirationSeconds": 3600, "path": "token"}
        volumes.append({"name": "store-token", "projected": {"sources": [{"serviceAccountToken": token}]}})
    for number, folder in enumerate(options.folders):
        volumes.append({"name": f"folder-{number}", **_folder(folder)})
    return volumes


def _folder(folder: options_module.Folder) -> Json:
    if folder.claim:
        return {"persistentVolumeClaim": {"claimName": folder.claim, "readOnly": True}}
    return {"hostPath": {"path": folder.host_path, "type": "Directory"}}


def least_grace_s(options: options_module.Options) -> int:
    """The grace period within which a pod can drain and stop without cutting off anybody."""
    return _leave_s(options) + _STOP_S


def models_bytes(options: options_module.Options, worker: resources.WorkerSpec) -> int:
    """What models may book on such a worker, the margin included."""
    asked = worker.resources.memory_bytes
    return asked or profile_of(options, worker).memory_bytes or options.default_memory_bytes


def _cache(cache: options_module.Cache) -> Json:
    if cache.claim:
        return {"persistentVolumeClaim": {"claimName": cache.claim}}
    return {"hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}


def _is_shared(cache: options_module.Cache) -> bool:
    return bool(cache.claim or cache.host_path)


def _bound(cache: options_module.Cache) -> Json:
    bounded = cache.size_bytes and not _is_shared(cache)
    return {"sizeLimit": quantities.of_bytes(cache.size_bytes)} if bounded else {}


def _drain_s(options: options_module.Options, profile: options_module.Profile) -> int:
    """What is left of the grace period once the worker has had its own time to stop."""
    return max(1, profile.termination_grace_s - _leave_s(options))


def _leave_s(options: options_module.Options) -> int:
    """What a worker takes to stop: every client has had its turn to connect elsewhere by then."""
    return math.ceil(1.2 * options.connection_age_s) + _STOP_S


def _worker_resources(
    worker: resources.WorkerSpec, options: options_module.Options, profile: options_module.Profile
) -> Json:
    asked = worker.resources
    host_bytes = profile.host_memory_bytes if asked.gpus else 0
    memory = quantities.of_bytes(host_bytes or models_bytes(options, worker) + profile.memory_overhead_bytes)
    limits = {"memory": memory}
    if asked.gpus:
        limits[profile.gpu_resource] = str(asked.gpus)
    milli = asked.cpu_milli or profile.cpu_milli
    return {"limits": limits, "requests": {**limits, **_optional(cpu=quantities.of_milli(milli) if milli else "")}}


def _environment(profile: options_module.Profile) -> list[Json]:
    given = [{"name": key, "value": value} for key, value in sorted(profile.environment.items())]
    return [_own_field("POD_NAME", "metadata.name"), _own_field("POD_IP", "status.podIP"), *given]


def _own_field(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _get(path: str) -> Json:
    return {"path": path, "port": names.HEALTH_PORT, "scheme": "HTTP"}


def _probe(path: str, *, every_s: int, failures: int) -> Json:
    """Of the sidecar, which asks the worker; one that is patient answers within its time."""
    return {
        "httpGet": _get(path),
        "periodSeconds": every_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _lost_node(profile: options_module.Profile) -> list[Json]:
    """Of our own choice: what Kubernetes adds by itself waits 300 s."""
    return [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": profile.lost_node_s,
        }
        for state in ("not-ready", "unreachable")
    ]


def _spread(spec: backend.LaunchSpec, constraint: options_module.Tree) -> Json:
    """Without a selector of its own a constraint spreads the replicas of the group."""
    return {"labelSelector": {"matchLabels": {names.GROUP: spec.group_id}}, **constraint}


def _pod_security(profile: options_module.Profile) -> Json:
    ids_ = {"runAsUser": profile.user_id, "runAsGroup": profile.group_id, "fsGroup": profile.group_id}
    return {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        **{key: value for key, value in ids_.items() if value is not None},
    }


def _container_security() -> Json:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _optional(**values: Any) -> Json:
    return {key: value for key, value in values.items() if value}
