"""An API that a program outside of the API server answers learns from it, and only from it, who asks."""

from __future__ import annotations

import base64
import collections.abc
import contextlib
import json
import ssl

import kubernetes
import trustme

from tests.kubernetes import by_hand
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster import waiting

_ADDRESS = "10.244.254.6"


class _WhoAsks(by_hand.Handler):
    def answer(self) -> tuple[bytes, str]:
        certificate = dict(pair[0] for pair in self._peer()["subject"])
        who = {
            "user": self.headers["X-Remote-User"],
            "groups": sorted(self.headers.get_all("X-Remote-Group") or ()),
            "spoken_by": certificate["commonName"],
        }
        return json.dumps(who).encode(), "application/json"

    def _peer(self) -> dict[str, tuple[tuple[tuple[str, str]]]]:
        assert isinstance(self.connection, ssl.SSLSocket)
        peer = self.connection.getpeercert()
        assert peer
        return peer  # type: ignore[return-value]  # the library says Any in many shapes


def test_the_front_proxy_says_who_asks_after_the_clusters_own_check_of_rights(
    cluster: cluster_client.Cluster, api: kubernetes.client.ApiClient, namespace: str
) -> None:
    authority = trustme.CA()
    tls = _server_tls(api, authority, f"echo.{namespace}.svc")
    group = f"{namespace}.example.com"
    with by_hand.serving(_ADDRESS, _WhoAsks, 8443, tls), _registered(api, group, namespace, authority):
        by_hand.publish(api, by_hand.Service(namespace, "echo", (_ADDRESS,), port=443, target_port=8443))
        path = f"/apis/{group}/v1/things"
        answer = waiting.until(
            lambda: cluster.get(path, cluster.token("root")),
            lambda answer: answer.status == 200 and b"user" in answer.body,
        )
        assert json.loads(answer.body) == {
            "user": "root",
            "groups": ["system:authenticated", "system:masters"],
            "spoken_by": "front-proxy-client",
        }
        assert cluster.get(path, cluster.token("mallory")).status == 403


def _server_tls(api: kubernetes.client.ApiClient, authority: trustme.CA, host: str) -> ssl.SSLContext:
    """Trusts exactly the clients that the cluster publishes for this purpose."""
    published = kubernetes.client.CoreV1Api(api).read_namespaced_config_map(
        "extension-apiserver-authentication", "kube-system"
    )
    assert published.data is not None
    assert json.loads(published.data["requestheader-username-headers"]) == ["X-Remote-User"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_verify_locations(cadata=published.data["requestheader-client-ca-file"])
    context.verify_mode = ssl.CERT_REQUIRED
    authority.issue_cert(host).configure_cert(context)
    return context


@contextlib.contextmanager
def _registered(
    api: kubernetes.client.ApiClient, group: str, namespace: str, authority: trustme.CA
) -> collections.abc.Iterator[None]:
    registrations = kubernetes.client.ApiregistrationV1Api(api)
    name = f"v1.{group}"
    manifest = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": name},
        "spec": {
            "group": group,
            "version": "v1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "caBundle": base64.b64encode(authority.cert_pem.bytes()).decode(),
            "service": {"name": "echo", "namespace": namespace},
        },
    }
    wanted = kubernetes.client.V1APIService.from_dict(manifest)
    assert wanted is not None
    registrations.create_api_service(wanted)
    try:
        yield
    finally:
        registrations.delete_api_service(name)
