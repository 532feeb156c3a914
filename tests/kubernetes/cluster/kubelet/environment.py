"""What a container's environment and command become: values from the pod, its configuration and Services. Pure."""

from __future__ import annotations

import base64
import collections.abc
import dataclasses
import math
import re
import typing

Json = dict[str, typing.Any]

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")
_INDEXED = re.compile(r"^metadata\.(labels|annotations)\['(.+)'\]$")
_NUMBER = re.compile(r"^([0-9.]+)([a-zA-Z]*)$")
_SUFFIXES = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", start=1)
}


class ConfigurationError(Exception):
    """The container cannot have what it asks for, yet; the message is Kubernetes' own."""


@dataclasses.dataclass(frozen=True)
class Sources:
    """What the API server has for a container: the data of Secrets and ConfigMaps by name (None: there is no such
    object), the Services of its namespace, and the pod's addresses."""

    secrets: collections.abc.Mapping[str, collections.abc.Mapping[str, bytes] | None]
    config_maps: collections.abc.Mapping[str, collections.abc.Mapping[str, bytes] | None]
    services: collections.abc.Sequence[Json]
    pod_ip: str
    host_ip: str


def needs(container: Json) -> tuple[set[str], set[str]]:
    """Names of the Secrets and ConfigMaps that a container's environment is made from."""
    secrets, config_maps = set(), set()
    origins = [*(container.get("envFrom") or []), *(one.get("valueFrom") or {} for one in container.get("env") or [])]
    for origin in origins:
        for key in ("secretRef", "secretKeyRef"):
            secrets |= {origin[key]["name"]} if key in origin else set()
        for key in ("configMapRef", "configMapKeyRef"):
            config_maps |= {origin[key]["name"]} if key in origin else set()
    return secrets, config_maps


def build(container: Json, pod: Json, sources: Sources) -> dict[str, str]:
    """The environment beyond the image's own.

    Raises:
        ConfigurationError: a Secret, ConfigMap, key or field is not there.
    """
    result = service_links(pod, sources.services)
    for origin in container.get("envFrom") or []:
        result |= _whole(origin, sources)
    for variable in container.get("env") or []:
        value = _value(variable, container, pod, sources)
        if value is not None:
            result[variable["name"]] = expand(value, result) if "valueFrom" not in variable else value
    return result


def expand(text: str, values: collections.abc.Mapping[str, str]) -> str:
    """Puts values in place of $(NAME); an unknown name stays as it is written, and $$ is a dollar."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return values.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def field(path: str, pod: Json, pod_ip: str, host_ip: str) -> str:
    """A field of the pod for the downward API.

    Raises:
        ConfigurationError: no such field can be had.
    """
    metadata, spec = pod["metadata"], pod["spec"]
    if indexed := _INDEXED.match(path):
        return str((metadata.get(indexed[1]) or {}).get(indexed[2], ""))
    if path in {"metadata.labels", "metadata.annotations"}:
        return _pairs(metadata.get(path.removeprefix("metadata.")) or {})
    known = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
        "status.hostIP": host_ip,
        "status.hostIPs": host_ip,
    }
    if path not in known:
        raise ConfigurationError(f"unsupported fieldPath: {path}")
    return str(known[path])


def service_links(pod: Json, services: collections.abc.Sequence[Json]) -> dict[str, str]:
    """Variables of the Services: of the API server always, of the pod's namespace unless it says no."""
    own = pod["metadata"]["namespace"] if pod["spec"].get("enableServiceLinks", True) else None
    result: dict[str, str] = {}
    for service in services:
        metadata = service["metadata"]
        is_master = (metadata["namespace"], metadata["name"]) == ("default", "kubernetes")
        address = service["spec"].get("clusterIP") or "None"
        if (is_master or metadata["namespace"] == own) and address != "None" and service["spec"].get("ports"):
            result |= _links(metadata["name"].upper().replace("-", "_"), address, service["spec"]["ports"])
    return result


def quantity(text: str | float) -> float:
    """A number as Kubernetes writes it: 250m, 2Gi, 1e3."""
    match = _NUMBER.match(str(text))
    if not match or match[2] not in _SUFFIXES:
        return float(text)
    return float(match[1]) * _SUFFIXES[match[2]]


def resource(reference: Json, containers: collections.abc.Sequence[Json], default: Json) -> str:
    """A request or limit in units of the reference's divisor, rounded up.

    Raises:
        ConfigurationError: it is of no known container.
    """
    name = reference.get("containerName") or default.get("name")
    container = next((one for one in containers if one["name"] == name), None)
    if container is None:
        raise ConfigurationError(f"container {name} not found")
    kind, _, key = reference["resource"].partition(".")
    amounts = (container.get("resources") or {}).get(kind) or {}
    divisor = quantity(reference.get("divisor") or "1") or 1.0
    return str(math.ceil(quantity(amounts.get(key, "0")) / divisor))


def _links(prefix: str, address: str, ports: list[Json]) -> dict[str, str]:
    result = {f"{prefix}_SERVICE_HOST": address, f"{prefix}_SERVICE_PORT": str(ports[0]["port"])}
    first = ports[0]
    result[f"{prefix}_PORT"] = f"{first.get('protocol', 'TCP').lower()}://{address}:{first['port']}"
    for port in ports:
        protocol = port.get("protocol", "TCP")
        stem = f"{prefix}_PORT_{port['port']}_{protocol}"
        result[stem] = f"{protocol.lower()}://{address}:{port['port']}"
        result |= {f"{stem}_PROTO": protocol.lower(), f"{stem}_PORT": str(port["port"]), f"{stem}_ADDR": address}
        if port.get("name"):
            result[f"{prefix}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
    return result


def _whole(origin: Json, sources: Sources) -> dict[str, str]:
    kind, reference, known = _reference(origin, "Ref", sources)
    data = known.get(reference["name"])
    if data is None:
        if reference.get("optional"):
            return {}
        raise ConfigurationError(f'{kind} "{reference["name"]}" not found')
    return {origin.get("prefix", "") + key: value.decode(errors="replace") for key, value in data.items()}


def _value(variable: Json, container: Json, pod: Json, sources: Sources) -> str | None:
    origin = variable.get("valueFrom")
    if origin is None:
        return str(variable.get("value", ""))
    if "fieldRef" in origin:
        return field(origin["fieldRef"]["fieldPath"], pod, sources.pod_ip, sources.host_ip)
    if "resourceFieldRef" in origin:
        return resource(origin["resourceFieldRef"], [container], container)
    return _key(origin, sources)


def _key(origin: Json, sources: Sources) -> str | None:
    kind, reference, known = _reference(origin, "KeyRef", sources)
    data = known.get(reference["name"])
    if data is None or reference["key"] not in data:
        if reference.get("optional"):
            return None
        missing = f'{kind} "{reference["name"]}" not found'
        raise ConfigurationError(missing if data is None else f"couldn't find key {reference['key']} in {kind}")
    return data[reference["key"]].decode(errors="replace")


def _reference(
    origin: Json, suffix: str, sources: Sources
) -> tuple[str, Json, collections.abc.Mapping[str, collections.abc.Mapping[str, bytes] | None]]:
    if f"secret{suffix}" in origin:
        return "secret", origin[f"secret{suffix}"], sources.secrets
    if f"configMap{suffix}" in origin:
        return "configmap", origin[f"configMap{suffix}"], sources.config_maps
    raise ConfigurationError(f"unsupported source of a variable: {', '.join(origin)}")


def data_of(item: Json) -> dict[str, bytes]:
    """The data of a Secret or ConfigMap."""
    if item.get("kind") == "Secret":
        return {key: base64.b64decode(value) for key, value in (item.get("data") or {}).items()}
    texts = {key: value.encode() for key, value in (item.get("data") or {}).items()}
    return texts | {key: base64.b64decode(value) for key, value in (item.get("binaryData") or {}).items()}


def _pairs(values: collections.abc.Mapping[str, str]) -> str:
    quoted = {
        key: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for key, value in values.items()
    }
    return "\n".join(f'{key}="{quoted[key]}"' for key in sorted(quoted))
