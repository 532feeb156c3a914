"""The Service that gives CoreDNS its well-known address, as manifests. One endpoint, on the host, written by hand."""

from __future__ import annotations

import typing

from tests.kubernetes.cluster import layout

_NAME = "kube-dns"
_PORTS = [{"name": "dns", "protocol": "UDP", "port": 53}, {"name": "dns-tcp", "protocol": "TCP", "port": 53}]
_SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": _NAME, "namespace": "kube-system", "labels": {"k8s-app": _NAME}},
    "spec": {"clusterIP": layout.DNS_ADDRESS, "ports": _PORTS},
}
_ENDPOINTS = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": _NAME, "namespace": "kube-system", "labels": {"kubernetes.io/service-name": _NAME}},
    "addressType": "IPv4",
    "endpoints": [{"addresses": [layout.HOST_ADDRESS], "conditions": {"ready": True}}],
    "ports": _PORTS,
}

# (path of the collection, manifest)
MANIFESTS: tuple[tuple[str, dict[str, typing.Any]], ...] = (
    ("api/v1/namespaces/kube-system/services", _SERVICE),
    ("apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", _ENDPOINTS),
)
