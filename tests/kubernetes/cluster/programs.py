"""The programs of a control plane as values: how each is called, and when it is ready. Starts none of them."""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import pathlib
import sys
import typing

import aiohttp

from tests.kubernetes.cluster import dns_service
from tests.kubernetes.cluster import layout as layouts

KUBELET = pathlib.Path(__file__).parent / "kubelet" / "__main__.py"

Ready = collections.abc.Callable[[aiohttp.ClientSession], collections.abc.Awaitable[bool]]


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to keep running. `stop_limit_s` is what it may take to end by itself; 0 kills it at once."""

    name: str
    command: tuple[str, ...]
    ready: Ready
    stop_limit_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Times that a test may want shorter or longer than a real cluster has them."""

    hpa_sync_s: int = 1
    node_grace_s: int = 10


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the programs are made from: the files, the binaries by name, the names of the nodes."""

    layout: layouts.Layout
    binaries: dict[str, pathlib.Path]
    node_names: tuple[str, ...]
    tuning: Tuning

    def command(self, program: str, flags: dict[str, object]) -> tuple[str, ...]:
        return (str(self.binaries[program]), *(f"--{name}={_flag(value)}" for name, value in flags.items()))


def etcd(plan: Plan) -> Program:
    flags = {
        "name": "test",
        "data-dir": plan.layout.etcd,
        "listen-client-urls": layouts.ETCD_CLIENT_URL,
        "advertise-client-urls": layouts.ETCD_CLIENT_URL,
        "listen-peer-urls": layouts.ETCD_PEER_URL,
        "initial-advertise-peer-urls": layouts.ETCD_PEER_URL,
        "initial-cluster": f"test={layouts.ETCD_PEER_URL}",
        "unsafe-no-fsync": True,
        "log-level": "warn",
    }
    return Program("etcd", plan.command("etcd", flags), _answers(f"{layouts.ETCD_CLIENT_URL}/health"))


def api_server(plan: Plan) -> Program:
    """The API server. It takes long to end when asked politely: it is killed, and etcd keeps what it promised."""
    flags = _api_server_flags(plan.layout) | _aggregation_flags(plan.layout)
    return Program("kube-apiserver", plan.command("kube-apiserver", flags), _answers(f"{layouts.API_URL}/readyz"))


def controller_manager(plan: Plan) -> Program:
    layout = plan.layout
    flags = _controller_flags(layout, "controller-manager") | {
        "root-ca-file": layout.certificate("ca"),
        "cluster-signing-cert-file": layout.certificate("ca"),
        "cluster-signing-key-file": layout.key("ca"),
        "service-account-private-key-file": layout.key("service-accounts"),
        "use-service-account-credentials": True,
        "kube-api-qps": 2000,
        "kube-api-burst": 4000,
        "horizontal-pod-autoscaler-sync-period": f"{plan.tuning.hpa_sync_s}s",
        "node-monitor-period": "1s",
        "node-monitor-grace-period": f"{plan.tuning.node_grace_s}s",
        "node-eviction-rate": 10,
    }
    command = plan.command("kube-controller-manager", flags)
    return Program("kube-controller-manager", command, _controllers_ready)


def scheduler(plan: Plan) -> Program:
    layout = plan.layout
    configuration = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": str(layout.kubeconfig("scheduler")), "qps": 2000, "burst": 4000},
        "podInitialBackoffSeconds": 1,
        "podMaxBackoffSeconds": 1,
    }
    flags = {
        "config": _write(layout, "scheduler.json", configuration),
        "authentication-kubeconfig": layout.kubeconfig("scheduler"),
        "authorization-kubeconfig": layout.kubeconfig("scheduler"),
        "bind-address": "127.0.0.1",
        "tls-cert-file": layout.certificate("control-plane"),
        "tls-private-key-file": layout.key("control-plane"),
    }
    return Program("kube-scheduler", plan.command("kube-scheduler", flags), _answers("https://127.0.0.1:10259/readyz"))


def proxy(plan: Plan) -> Program:
    """kube-proxy. Ready once a Service's name leads to the API server, through the Services of both.

    The address comes first: a question that is asked before there is a way to the name server costs five seconds.
    """
    configuration = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": layouts.CONTROL_PLANE_NODE,
        "bindAddress": layouts.HOST_ADDRESS,
        "clusterCIDR": layouts.POD_RANGE,
        "clientConnection": {"kubeconfig": str(plan.layout.kubeconfig("proxy"))},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "nftables": {"minSyncPeriod": "0s"},
        # The kernel's limits are the host's: a namespace may not change them.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    flags: dict[str, object] = {"config": _write(plan.layout, "proxy.json", configuration)}
    urls = [
        f"https://{host}/readyz" for host in (layouts.KUBERNETES_ADDRESS, f"kubernetes.default.svc.{layouts.DOMAIN}")
    ]
    return Program("kube-proxy", plan.command("kube-proxy", flags), _answers(*urls))


def dns(plan: Plan) -> Program:
    """CoreDNS, on the host's address and behind a Service, since kube-proxy refuses what is no Service's address."""
    corefile = f"""\
.:53 {{
    bind {layouts.HOST_ADDRESS}
    errors
    ready 127.0.0.1:8181
    kubernetes {layouts.DOMAIN} in-addr.arpa {{
        kubeconfig {plan.layout.kubeconfig("coredns")}
        ttl 1
    }}
}}
"""
    path = plan.layout.configuration("Corefile")
    path.write_text(corefile)
    return Program("coredns", plan.command("coredns", {"conf": path}), _dns_ready)


def kubelet(plan: Plan) -> Program:
    command = (
        *(sys.executable, "-m", "tests.kubernetes.cluster.kubelet"),
        *("--kubeconfig", str(plan.layout.kubeconfig("kubelet"))),
        *("--directory", str(plan.layout.directory)),
        *("--nodes", str(plan.layout.nodes)),
    )
    return Program("kubelet", command, _nodes_ready(frozenset(plan.node_names)), stop_limit_s=10.0)


def _api_server_flags(layout: layouts.Layout) -> dict[str, object]:
    return {
        "etcd-servers": layouts.ETCD_CLIENT_URL,
        "bind-address": "0.0.0.0",
        "advertise-address": layouts.HOST_ADDRESS,
        "secure-port": layouts.API_PORT,
        "tls-cert-file": layout.certificate("kube-apiserver"),
        "tls-private-key-file": layout.key("kube-apiserver"),
        "client-ca-file": layout.certificate("ca"),
        "token-auth-file": layout.pki / "tokens.csv",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": True,
        "service-account-issuer": f"https://kubernetes.default.svc.{layouts.DOMAIN}",
        "service-account-key-file": layout.key("service-accounts"),
        "service-account-signing-key-file": layout.key("service-accounts"),
        "service-cluster-ip-range": layouts.SERVICE_RANGE,
        "kubelet-certificate-authority": layout.certificate("ca"),
        "kubelet-client-certificate": layout.certificate("kube-apiserver-kubelet-client"),
        "kubelet-client-key": layout.key("kube-apiserver-kubelet-client"),
        "kubelet-preferred-address-types": "InternalIP",
        "audit-policy-file": _write(layout, "audit-policy.json", _AUDIT_POLICY),
        "audit-log-path": layout.audit_log,
        "audit-log-mode": "blocking",
    }


def _aggregation_flags(layout: layouts.Layout) -> dict[str, object]:
    """Without these an aggregated API cannot know who asks, nor ask back whether they may."""
    return {
        "enable-aggregator-routing": True,
        "requestheader-client-ca-file": layout.certificate("front-proxy-ca"),
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": layout.certificate("front-proxy-client"),
        "proxy-client-key-file": layout.key("front-proxy-client"),
    }


# Who called what, for those who count calls; the control plane's own are many and nobody's business.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "None",
            "users": [
                *("fake-kubelet", "coredns", "system:apiserver", "system:kube-proxy"),
                *("system:kube-scheduler", "system:kube-controller-manager"),
            ],
        },
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata"},
    ],
}


def _controller_flags(layout: layouts.Layout, user: str) -> dict[str, object]:
    return {
        "kubeconfig": layout.kubeconfig(user),
        "authentication-kubeconfig": layout.kubeconfig(user),
        "authorization-kubeconfig": layout.kubeconfig(user),
        "bind-address": "127.0.0.1",
        "tls-cert-file": layout.certificate("control-plane"),
        "tls-private-key-file": layout.key("control-plane"),
        "leader-elect": False,
    }


def _write(layout: layouts.Layout, name: str, content: dict[str, typing.Any]) -> pathlib.Path:
    path = layout.configuration(name)
    path.write_text(json.dumps(content, indent=1))
    return path


def _flag(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _answers(*urls: str) -> Ready:
    async def ready(session: aiohttp.ClientSession) -> bool:
        for url in urls:
            async with session.get(url) as response:
                if response.status != 200:
                    return False
        return True

    return ready


# A pod can be made in the default namespace only once its service account is there.
_controllers_ready = _answers(
    "https://127.0.0.1:10257/healthz", f"{layouts.API_URL}/api/v1/namespaces/default/serviceaccounts/default"
)


async def _dns_ready(session: aiohttp.ClientSession) -> bool:
    """Also puts the Service in front, for which it has to be asked until the namespace kube-system is there."""
    for kind, manifest in dns_service.MANIFESTS:
        url = f"{layouts.API_URL}/{kind}/{manifest['metadata']['name']}?fieldManager=test-cluster"
        headers = {"Content-Type": "application/apply-patch+yaml"}
        async with session.patch(url, json=manifest, headers=headers) as response:
            if not response.ok:
                return False
    return await _answers("http://127.0.0.1:8181/ready")(session)


def _nodes_ready(names: frozenset[str]) -> Ready:
    async def ready(session: aiohttp.ClientSession) -> bool:
        async with session.get(f"{layouts.API_URL}/api/v1/nodes") as response:
            nodes = (await response.json())["items"]
        return names <= {node["metadata"]["name"] for node in nodes if _is_ready(node)}

    return ready


def _is_ready(node: dict[str, typing.Any]) -> bool:
    conditions = node.get("status", {}).get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
