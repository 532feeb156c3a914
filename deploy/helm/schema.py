"""Makes the chart's values.schema.json.

The shape of the values comes from values.yaml, that of settings from the server's own settings, that of parts of pods
from Kubernetes' published schema. Every object is closed, so that a wrong key is refused before anything is rendered.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Iterable, Mapping
from typing import Any

from deploy.helm import documented
from tms_server import settings

KUBERNETES = "v1.36.0"
FILE = documented.CHART / "values.schema.json"
Schema = dict[str, Any]

_CORE = "io.k8s.api.core.v1."
_PEER = "io.k8s.api.networking.v1.NetworkPolicyPeer"
_NAME = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_STRINGS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_DURATION = {"type": "string", "pattern": "^([0-9]+(h|m|s|ms))+$"}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_CIDR = {"type": "string", "pattern": "^[0-9a-fA-F.:]+/[0-9]{1,3}$"}
_TAG = {"type": "string", "pattern": "^[A-Za-z0-9_.-]{0,128}$"}
_DIGEST = {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}


def kubernetes(name: str) -> Schema:
    """A type of Kubernetes' API by its full name."""
    return {"$ref": f"#/$defs/{name}"}


def core(name: str) -> Schema:
    """A type of the core API."""
    return kubernetes(_CORE + name)


def of_settings(name: str) -> Schema:
    """A section of the server's settings."""
    return {"$ref": f"#/$defs/settings.{name}"}


def each(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def named(schema: Schema, pattern: str = _NAME) -> Schema:
    """An object whose keys are names."""
    return {"type": "object", "propertyNames": {"pattern": pattern}, "additionalProperties": schema}


def one_of(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


# What a default alone does not tell.
SHAPES: Mapping[str, Schema] = {
    "commonLabels": _STRINGS,
    "commonAnnotations": _STRINGS,
    "images.pullPolicy": one_of("", "Always", "IfNotPresent", "Never"),
    "images.pullSecrets": each({"type": "string", "minLength": 1}),
    **{f"images.{image}.tag": _TAG for image in ("server", "sidecar", "worker")},
    **{f"images.{image}.digest": _DIGEST for image in ("server", "sidecar", "worker")},
    "server.replicas": {"type": "integer", "minimum": 0, "maximum": 32},
    "server.resources": core("ResourceRequirements"),
    "server.podLabels": _STRINGS,
    "server.podAnnotations": _STRINGS,
    "server.podSecurityContext": core("PodSecurityContext"),
    "server.securityContext": core("SecurityContext"),
    "server.nodeSelector": _STRINGS,
    "server.tolerations": each(core("Toleration")),
    "server.affinity": core("Affinity"),
    "server.topologySpreadConstraints": each(core("TopologySpreadConstraint")),
    "server.extraArgs": each({"type": "string"}),
    "server.extraEnv": each(core("EnvVar")),
    "server.extraVolumes": each(core("Volume")),
    "server.extraVolumeMounts": each(core("VolumeMount")),
    "server.podDisruptionBudget.maxUnavailable": {"type": ["integer", "string"]},
    "migrations.resources": core("ResourceRequirements"),
    "persistence.accessModes": each(one_of("ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany")),
    "persistence.annotations": _STRINGS,
    "service.type": one_of("ClusterIP", "NodePort", "LoadBalancer"),
    "service.port": _PORT,
    "service.nodePort": {"type": "integer", "minimum": 0, "maximum": 65535},
    "service.annotations": _STRINGS,
    "service.labels": _STRINGS,
    "service.loadBalancerSourceRanges": each(_CIDR),
    "service.externalTrafficPolicy": one_of("Cluster", "Local"),
    "tls.mode": one_of("managed", "secret", "certManager", "off"),
    "tls.names": each({"type": "string", "minLength": 1}),
    "tls.certManager.issuerRef.kind": {"type": "string", "minLength": 1},
    "tls.certManager.duration": _DURATION,
    "tls.certManager.renewBefore": _DURATION,
    "serviceAccount.annotations": _STRINGS,
    "networkPolicy.apiClients": each(kubernetes(_PEER)),
    "networkPolicy.inferenceClients": each(kubernetes(_PEER)),
    "networkPolicy.monitoring": each(kubernetes(_PEER)),
    "networkPolicy.apiServer": {**each(_CIDR), "minItems": 1},
    "networkPolicy.apiServerPorts": {**each(_PORT), "minItems": 1},
    "networkPolicy.stores": each(kubernetes(_PEER)),
    "networkPolicy.storePorts": each(_PORT),
    "networkPolicy.database": each(kubernetes(_PEER)),
    "networkPolicy.databasePort": _PORT,
    "monitoring.serviceMonitor.labels": _STRINGS,
    "monitoring.serviceMonitor.interval": _DURATION,
    "monitoring.podMonitor.labels": _STRINGS,
    "monitoring.podMonitor.interval": _DURATION,
    "monitoring.prometheusRule.labels": _STRINGS,
    "monitoring.dashboard.labels": _STRINGS,
    "workers.namespace": {"type": "string", "pattern": "^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?$"},
    "profiles": named(of_settings("Profile")),
    "programs": named(of_settings("Program")),
    "pools": named(of_settings("Pool"), "^([a-z][a-z0-9-]{0,62}/)?[a-z][a-z0-9-]{0,62}$"),
    "defaultPool": of_settings("DefaultPool"),
    "allowedImages": each({"type": "string", "minLength": 1}),
    "leaseTimes": of_settings("LeaseTimes"),
    # Short enough for the name of a volume.
    "repositories": named(of_settings("Repository"), "^[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?$"),
    "settings": of_settings("Settings"),
}

# What the chart says itself, and what means nothing in a cluster: .Values.settings cannot say it.
_OPEN_SECTIONS: Mapping[str, frozenset[str] | None] = {
    "api": frozenset({"stop_grace_s"}),
    "workers": frozenset({"memory_bytes", "margin_bytes"}),
    "timing": None,
    "log": None,
}
_CHARTS_OWN = frozenset(
    {"namespace", "kubeconfig", "context", "dial", "worker_image", "sidecar_image", "image_pull_policy", "watch_nodes"}
    | {"profiles", "programs", "ca_config_map"}
)
_PARTS_OF_PODS: Mapping[str, Schema] = {
    "affinity": core("Affinity"),
    "tolerations": each(core("Toleration")),
    "topology_spread": each(core("TopologySpreadConstraint")),
}


def schema() -> Schema:
    """The whole schema."""
    made = _object()
    for value in documented.values():
        *sections, key = value.path.split(".")
        at = made
        for section in sections:
            at = at["properties"].setdefault(section, _object())
        at["properties"][key] = {**_shape(value), "description": value.meaning}
    made["properties"]["global"] = {"type": "object", "description": "Values of a chart above this one; not used."}
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    made["$defs"] = _definitions(made)
    return made


def text() -> str:
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"


def _object() -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": {}}


def _shape(value: documented.Value) -> Schema:
    if value.path in SHAPES:
        return SHAPES[value.path]
    match value.default:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer", "minimum": 0}
        case str():
            return {"type": "string"}
    raise ValueError(f"{value.path}: its default {value.default!r} tells no shape; add one to SHAPES")


def _definitions(made: Schema) -> Schema:
    """Everything that is referred to, and what that refers to."""
    found: Schema = {}
    waiting = _references(made)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _from_settings()[name] if name.startswith("settings.") else _from_kubernetes(name)
            waiting |= _references(found[name])
    return found


def _references(tree: Any) -> set[str]:
    if isinstance(tree, dict):
        own = {str(tree["$ref"]).removeprefix("#/$defs/")} if "$ref" in tree else set()
        return own.union(*map(_references, tree.values()))
    if isinstance(tree, list):
        return set().union(*map(_references, tree))
    return set()


@functools.cache
def _from_settings() -> Mapping[str, Schema]:
    published = settings.Settings.model_json_schema()
    made = {f"settings.{name}": _clean(each_, keep=("description",)) for name, each_ in published["$defs"].items()}
    made["settings.Profile"]["properties"].update(_PARTS_OF_PODS)
    made["settings.Repository"] = _repository(made["settings.Repository"])
    kubernetes_section = _only(made["settings.Kubernetes"], without=_CHARTS_OWN)
    sections = {"kubernetes": kubernetes_section}
    for name, keys in _OPEN_SECTIONS.items():
        section = made[published["properties"][name]["$ref"].replace("#/$defs/", "settings.")]
        sections[name] = section if keys is None else _only(section, without=section["properties"].keys() - keys)
    made["settings.Settings"] = {**_object(), "properties": sections}
    return made


def _repository(section: Schema) -> Schema:
    """A repository of the chart names a Secret instead of keys."""
    made = _only(section, without=())
    made["properties"]["path"] = {
        "type": "string",
        "pattern": "^/[A-Za-z0-9._/-]+$",
        "description": "where a claim or host_path is mounted; absent: /tms/repositories/NAME",
    }
    made["properties"]["keys"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"source": one_of("anonymous", "environment")},
        "description": "where keys are, without existingSecret; environment: in server.extraEnv",
    }
    made["properties"]["existingSecret"] = {
        "type": "string",
        "minLength": 1,
        "description": "Secret with access_key_id, secret_access_key and, if need be, session_token; or with secret, for a url or "
        "gcs_bucket",
    }
    return made


def _only(section: Schema, without: Iterable[str]) -> Schema:
    left_out = frozenset(without)
    return {
        **section,
        "properties": {key: each_ for key, each_ in section["properties"].items() if key not in left_out},
    }


@functools.cache
def _published() -> Mapping[str, Schema]:
    place = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"{KUBERNETES}-local-strict"
    found: Mapping[str, Schema] = json.loads((place / "_definitions.json").read_text())["$defs"]
    return found


def _from_kubernetes(name: str) -> Schema:
    made = _clean(_published()[name])
    if made.get("type") == "object" and "properties" not in made and "additionalProperties" not in made:
        made["additionalProperties"] = False  # what only the API server writes, such as managed fields
    return made


_KEPT = frozenset(
    {"type", "properties", "items", "additionalProperties", "required", "enum", "pattern", "$ref", "anyOf", "oneOf"}
    | {"minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength", "minItems", "const", "propertyNames"}
)


def _clean(tree: Schema, keep: Iterable[str] = ()) -> Schema:
    """A schema without prose, formats and extensions; absent is absent, never null."""
    kept = _KEPT.union(keep)
    made: Schema = {}
    for key, value in tree.items():
        if key not in kept:
            continue
        if key == "properties":
            made[key] = {name: _clean(each_, keep) for name, each_ in value.items()}
        elif key in ("anyOf", "oneOf"):
            # A number that is written as one or as a text is one choice, not two that could both hold.
            made["anyOf"] = [_clean(each_, keep) for each_ in value if each_.get("type") != "null"]
        elif key == "type" and isinstance(value, list):
            made[key] = next(word for word in value if word != "null")
        else:
            made[key] = _clean(value, keep) if isinstance(value, dict) else value
    if "$ref" in made:
        made["$ref"] = _renamed(made["$ref"])
    return made


def _renamed(reference: str) -> str:
    name = reference.removeprefix("#/$defs/")
    return reference if name.startswith("io.k8s.") else f"#/$defs/settings.{name}"
