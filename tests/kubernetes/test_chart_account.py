"""What the server does, done by the account that the chart makes for it: a right that is missing fails here."""

from __future__ import annotations

import base64
import collections.abc
import dataclasses
import pathlib
from typing import Any

import kubernetes
import pytest

from tests.kubernetes import charts
from tests.kubernetes.cluster import client as cluster_client
from tests.support import kubernetes_backend as support
from tms_server import clock
from tms_server.backends.kubernetes import backend as backend_module
from tms_server.backends.kubernetes import connect
from tms_server.fleet import desired
from tms_server.metrics_api import certificates, kube, registration
from tms_server.model import errors, ids
from tms_server.ports import backend

NAME = desired.name_owner(ids.DEFAULT_NAMESPACE, ids.LeaseName("digits"))
ROUTE = backend.Route(lease_id=support.LEASE, owners=(desired.lease_owner(support.LEASE), NAME), workers=frozenset())


@dataclasses.dataclass(frozen=True)
class Account:
    """The server's account in one namespace."""

    namespace: str
    kubeconfig: pathlib.Path


@pytest.fixture
def helm(cluster: cluster_client.Cluster, namespace: str) -> collections.abc.Iterator[charts.Helm]:
    with charts.helm(str(cluster.kubeconfig), namespace) as opened:
        yield opened


@pytest.fixture
def account(
    cluster: cluster_client.Cluster, api: kubernetes.client.ApiClient, helm: charts.Helm, tmp_path: pathlib.Path
) -> Account:
    helm.install("tms", {"server": {"replicas": 0}})  # the account alone
    request = kubernetes.client.AuthenticationV1TokenRequest(spec=kubernetes.client.V1TokenRequestSpec(audiences=[]))
    core = kubernetes.client.CoreV1Api(api)
    answer = core.create_namespaced_service_account_token("tms", helm.namespace, request)
    assert answer.status is not None
    file = support.kubeconfig_of(tmp_path, cluster.server, cluster.ca_certificate, str(answer.status.token))
    return Account(helm.namespace, file)


async def test_the_backend_makes_changes_and_removes_workers_with_it(
    api: kubernetes.client.ApiClient, account: Account
) -> None:
    async with support.opened(support.options(account.namespace), account.kubeconfig) as runs:
        await runs.launch(support.spec())
        await runs.launch(dataclasses.replace(support.spec(), scaling=support.SCALING, replicas=2))
        assert await runs.route([ROUTE]) == {}
        assert _made(api, account.namespace) >= {"w-0123456789abcdef", "l-0123456789abcdef", "digits-headless"}
        assert await runs.route([]) == {}
        await runs.retire(support.GROUP)
        assert await runs.observe() == ()
    assert _made(api, account.namespace) == set()


async def test_certificates_are_made_published_and_registered_with_it(
    api: kubernetes.client.ApiClient, account: Account
) -> None:
    connection = kube.Kube(await connect.connect(connect.Connection(kubeconfig=account.kubeconfig)))
    try:
        place = certificates.Place(
            namespace=account.namespace,
            names=(f"tms.{account.namespace}.svc",),
            installation="i-test",
            secret="tms-serving",
            config_map="tms-ca",
        )
        kept = certificates.Certificates(connection, place, clock.SystemClock())
        await kept.refresh()
        service = registration.Service(namespace=account.namespace, name="tms")
        state = await registration.Registration(connection, service, "i-test").keep(kept.current.ca)
        assert state.holder is registration.Holder.OURS
    finally:
        await connection.close()
    core = kubernetes.client.CoreV1Api(api)
    assert core.read_namespaced_config_map("tms-ca", account.namespace).data == {"ca.crt": kept.current.ca}
    registered = kubernetes.client.ApiregistrationV1Api(api).read_api_service(registration.NAME)
    assert registered.spec is not None
    assert base64.b64decode(str(registered.spec.ca_bundle)).decode() == kept.current.ca


async def test_without_the_charts_rights_the_backend_says_which_are_missing(
    helm: charts.Helm, account: Account
) -> None:
    helm.upgrade("tms", {"server": {"replicas": 0}, "rbac": {"create": False}})
    with pytest.raises(errors.PermissionDenied, match=r"deployments\.apps"):
        await _open(account)


async def _open(account: Account) -> backend_module.KubernetesBackend:
    async with support.opened(support.options(account.namespace), account.kubeconfig) as runs:
        return runs


def _made(api: kubernetes.client.ApiClient, namespace: str) -> set[str]:
    """Names of all that the backend made in the namespace, but for its budget."""
    ours = "app.kubernetes.io/managed-by=tms"
    core = kubernetes.client.CoreV1Api(api)
    scalers = kubernetes.client.AutoscalingV2Api(api)
    listed: list[Any] = [
        *kubernetes.client.AppsV1Api(api).list_namespaced_deployment(namespace, label_selector=ours).items,
        *core.list_namespaced_service(namespace, label_selector=ours).items,
        *core.list_namespaced_secret(namespace, label_selector=ours).items,
        *scalers.list_namespaced_horizontal_pod_autoscaler(namespace, label_selector=ours).items,
    ]
    return {str(each.metadata.name) for each in listed}
