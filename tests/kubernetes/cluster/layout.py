"""Where everything of the test cluster lies: addresses, ports and files. Decides no behaviour and touches no file."""

from __future__ import annotations

import dataclasses
import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]

POD_RANGE = "10.244.0.0/16"
SERVICE_RANGE = "10.0.0.0/16"
HOST_ADDRESS = "10.244.255.1"
DNS_ADDRESS = "10.0.0.10"
KUBERNETES_ADDRESS = "10.0.0.1"  # the first of the Service range, by Kubernetes' own rule
DOMAIN = "cluster.local"

API_PORT = 6443
API_URL = f"https://{HOST_ADDRESS}:{API_PORT}"
ETCD_CLIENT_URL = "http://127.0.0.1:2379"
ETCD_PEER_URL = "http://127.0.0.1:2380"

CONTROL_PLANE_NODE = "control-plane"

# Bearer token -> (user, groups): for tests that need several users beside the administrator's certificate.
TOKENS: dict[str, tuple[str, tuple[str, ...]]] = {
    "token-of-root": ("root", ("system:masters",)),
    "token-of-alice": ("alice", ("developers",)),
    "token-of-bob": ("bob", ("developers",)),
    "token-of-mallory": ("mallory", ()),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of one cluster below its directory."""

    directory: pathlib.Path

    @property
    def pki(self) -> pathlib.Path:
        return self.directory / "pki"

    @property
    def logs(self) -> pathlib.Path:
        return self.directory / "logs"

    @property
    def etcd(self) -> pathlib.Path:
        return self.directory / "etcd"

    @property
    def kubelet(self) -> pathlib.Path:
        return self.directory / "kubelet"

    @property
    def nodes(self) -> pathlib.Path:
        return self.directory / "nodes.json"

    @property
    def details(self) -> pathlib.Path:
        return self.directory / "cluster.json"

    @property
    def control_socket(self) -> pathlib.Path:
        return self.directory / "control.sock"

    @property
    def audit_log(self) -> pathlib.Path:
        return self.logs / "audit.jsonl"

    def certificate(self, name: str) -> pathlib.Path:
        return self.pki / f"{name}.crt"

    def key(self, name: str) -> pathlib.Path:
        return self.pki / f"{name}.key"

    def kubeconfig(self, name: str) -> pathlib.Path:
        return self.directory / f"{name}.kubeconfig"

    def configuration(self, name: str) -> pathlib.Path:
        return self.directory / "configuration" / name

    def log(self, program: str) -> pathlib.Path:
        return self.logs / f"{program}.log"


def say(text: str) -> None:
    """Tells the person at the terminal; standard output belongs to the command that runs in the cluster."""
    print(f"cluster: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the one place that speaks
