"""The chart rendered with what administrators choose, and the objects that come of it."""

from __future__ import annotations

import copy
import functools
import json
import pathlib
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import helm_python
import yaml

from deploy.helm import documented
from tms_server import settings

NAMESPACE = "serving"
POSTGRES = {"server": {"replicas": 3}, "database": {"existingSecret": "tms-postgres"}}
S3 = {"bucket": "models", "region": "eu-central-1", "prefix": "serving", "existingSecret": "s3-keys"}

MATRIX: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "postgres": POSTGRES,
    "postgres-url": {"server": {"replicas": 2}, "database": {"url": "postgresql://tms:secret@db.example/tms"}},
    "node-port": {"service": {"type": "NodePort", "nodePort": 30345}},
    "load-balancer": {
        "service": {
            "type": "LoadBalancer",
            "loadBalancerSourceRanges": ["192.0.2.0/24"],
            "annotations": {"example.com/internal": "true"},
        }
    },
    "monitors": {
        "monitoring": {
            each: {"enabled": True} for each in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")
        }
    },
    "own-certificate": {"tls": {"mode": "secret", "secretName": "tms-tls", "caConfigMap": "company-ca"}},
    "cert-manager": {
        "tls": {
            "names": ["tms.example", "192.0.2.7"],
            "mode": "certManager",
            "caConfigMap": "company-ca",
            "certManager": {"issuerRef": {"name": "company"}},
        }
    },
    "plain": {"tls": {"mode": "off"}, "metricsApi": {"enabled": False}},
    "no-metrics-api": {"metricsApi": {"enabled": False}},
    "no-nodes": {"rbac": {"nodes": False}},
    "no-persistence": {"persistence": {"enabled": False}, "networkPolicy": {"enabled": False}},
    "workers-elsewhere": {"workers": {"namespace": "gpu-workers"}},
    "fleet": {
        "images": {
            "registry": "registry.example:5000/ai",
            "pullSecrets": ["registry"],
            "worker": {"tag": "0.1.0-cuda"},
        },
        "repositories": {
            "models": S3,
            "open": {"bucket": "public", "endpoint_url": "https://s3.example"},
            "shared": {"claim": "models"},
            "node": {"host_path": "/srv/models", "path": "/models"},
        },
        "profiles": {
            "default": {"gpu_resource": ""},
            "a100": {
                "memory_bytes": 80 * 2**30,
                "node_selector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "cache": {"kind": "host_path", "path": "/var/cache/tms"},
                "lost_node_s": 20,
            },
        },
        "programs": {"triton": {"image": "registry.example/tritonserver:25.09", "command": ["tritonserver"]}},
        "pools": {"a100": {"profile": "a100", "gpus": 1, "max_workers": 8}, "team/small": {"memory_bytes": 2**31}},
        "defaultPool": {"enabled": False},
        "allowedImages": ["registry.example/tritonserver:*"],
        "leaseTimes": {"hold_s": 1800.5},
        "settings": {"api": {"stop_grace_s": 10}, "kubernetes": {"strict": True}, "log": {"level": "debug"}},
        "commonLabels": {"team": "vision"},
        "commonAnnotations": {"owner": "vision@example.com"},
        "server": {
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
            "extraArgs": ["--log-level=info"],
            "tolerations": [{"key": "control", "operator": "Exists"}],
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "priorityClassName": "system-cluster-critical",
            "affinity": {"nodeAffinity": {}},
            "podAnnotations": {"a": "b"},
            "extraVolumes": [{"name": "extra", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra"}],
        },
    },
}

Object = dict[str, Any]


def render(values: Mapping[str, Any], name: str = "tms", namespace: str = NAMESPACE) -> list[Object]:
    """All objects of a release, hooks included; the caller's own to change."""
    return copy.deepcopy(_rendered(json.dumps(values), name, namespace))


@functools.cache
def _rendered(values: str, name: str, namespace: str) -> list[Object]:
    files = _chart().render(json.loads(values), name=name, namespace=namespace)
    return [each for file, text in files.items() if file.endswith(".yaml") for each in yaml.safe_load_all(text) if each]


@functools.cache
def _chart() -> helm_python.Chart:
    return helm_python.Chart.load(documented.CHART)


def of_kind(objects: list[Object], kind: str) -> Iterator[Object]:
    return (each for each in objects if each["kind"] == kind)


def only(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    (found,) = (each for each in of_kind(objects, kind) if each["metadata"]["name"] == name)
    return found


def told(objects: list[Object], scratch: pathlib.Path) -> settings.Settings:
    """The server's settings as its ConfigMap says them."""
    text = only(objects, "ConfigMap", "tms")["data"]["tms.toml"]
    assert tomllib.loads(text)
    file = scratch / "tms.toml"
    file.write_text(text)
    return settings.load({}, file)
