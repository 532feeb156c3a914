"""Writes who is who in a test cluster: certificates, kubeconfigs and the table of tokens."""

from __future__ import annotations

import json

from cryptography.hazmat.primitives.asymmetric import ec

from tests.kubernetes.cluster import certificates
from tests.kubernetes.cluster import layout as layouts
from tests.kubernetes.cluster import nodes as node_values

# User of each kubeconfig -> the subject of its certificate. The fake kubelet stands for all nodes and so for none: it
# is an administrator, and the node authorizer's narrower rights are not tested.
_USERS = {
    "admin": certificates.Subject("kubernetes-admin", ("system:masters",)),
    "kubelet": certificates.Subject("fake-kubelet", ("system:masters",)),
    "coredns": certificates.Subject("coredns", ("system:masters",)),
    "controller-manager": certificates.Subject("system:kube-controller-manager"),
    "scheduler": certificates.Subject("system:kube-scheduler"),
    "proxy": certificates.Subject("system:kube-proxy"),
}
_API_HOSTS = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    f"kubernetes.default.svc.{layouts.DOMAIN}",
    "localhost",
    "127.0.0.1",
    layouts.HOST_ADDRESS,
    layouts.KUBERNETES_ADDRESS,
)


def write(layout: layouts.Layout, nodes: tuple[node_values.Node, ...]) -> None:
    """Writes all keys, certificates, kubeconfigs and tokens below the directory of `layout`."""
    layout.pki.mkdir(mode=0o700)
    root = certificates.authority("tms-test-cluster")
    root.write(layout, "ca")
    root.issue(certificates.Subject("kube-apiserver", hosts=_API_HOSTS)).write(layout, "kube-apiserver")
    root.issue(certificates.Subject("control-plane", hosts=("localhost", "127.0.0.1"))).write(layout, "control-plane")
    root.issue(_kubelet_server(nodes)).write(layout, "kubelet-server")
    root.issue(certificates.Subject("kube-apiserver-kubelet-client", ("system:masters",))).write(
        layout, "kube-apiserver-kubelet-client"
    )
    _write_front_proxy(layout)
    certificates.write_key(layout.key("service-accounts"), ec.generate_private_key(ec.SECP256R1()))
    for user, subject in _USERS.items():
        root.issue(subject).write(layout, user)
        _write_kubeconfig(layout, user)
    _write_tokens(layout)


def _write_front_proxy(layout: layouts.Layout) -> None:
    """An authority of its own, so that no other certificate of the cluster can speak for a user to an aggregated API."""
    authority = certificates.authority("front-proxy-ca")
    authority.write(layout, "front-proxy-ca")
    authority.issue(certificates.Subject("front-proxy-client")).write(layout, "front-proxy-client")


def _kubelet_server(nodes: tuple[node_values.Node, ...]) -> certificates.Subject:
    names = tuple(node.name for node in nodes) + tuple(node.address for node in nodes)
    return certificates.Subject("kubelet-server", hosts=("localhost", "127.0.0.1", *names))


def _write_kubeconfig(layout: layouts.Layout, user: str) -> None:
    cluster = {"server": layouts.API_URL, "certificate-authority": str(layout.certificate("ca"))}
    credentials = {"client-certificate": str(layout.certificate(user)), "client-key": str(layout.key(user))}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        "current-context": "test",
    }
    layout.kubeconfig(user).write_text(json.dumps(content, indent=1))  # JSON is YAML


def _write_tokens(layout: layouts.Layout) -> None:
    rows = [f'{token},{user},{user},"{",".join(groups)}"\n' for token, (user, groups) in layouts.TOKENS.items()]
    (layout.pki / "tokens.csv").write_text("".join(rows))
