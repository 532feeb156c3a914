"""The chart on a real API server: what it accepts, and what install, upgrade, rollback and uninstall leave behind."""

from __future__ import annotations

import collections.abc
import contextlib
from typing import Any

import helm_python
import kubernetes
import pytest

from tests.kubernetes import charts
from tests.kubernetes.cluster import client as cluster_client
from tests.unit.deploy import charts as rendered
from tms_server.backends.kubernetes import kinds
from tms_server.metrics_api import registration

# Their operators are not in the test cluster.
KNOWN = {name: values for name, values in rendered.MATRIX.items() if name not in ("monitors", "cert-manager")}
# What is tested here needs no server that runs.
STILL: dict[str, Any] = {"server": {"replicas": 0}}
STAYS = {("PersistentVolumeClaim", "tms-data")}


@pytest.fixture
def helm(cluster: cluster_client.Cluster, namespace: str) -> collections.abc.Iterator[charts.Helm]:
    with charts.helm(str(cluster.kubeconfig), namespace) as opened:
        yield opened


@pytest.mark.parametrize("choice", KNOWN)
def test_the_api_server_accepts_every_object_of_every_choice(
    api: kubernetes.client.ApiClient, namespace: str, choice: str
) -> None:
    dynamic = kubernetes.dynamic.DynamicClient(api)  # type: ignore[no-untyped-call]  # theirs
    values = dict(KNOWN[choice])
    if "workers" in values:
        values["workers"] = {"namespace": "default"}
    for each in rendered.render(values, namespace=namespace):
        resource = dynamic.resources.get(api_version=each["apiVersion"], kind=each["kind"])
        # Strict: an unknown field is an error, not a warning. Nothing is stored.
        answer = resource.create(body=each, dry_run="All", field_validation="Strict", **_where(resource, each))
        assert answer.metadata.name == each["metadata"]["name"]


def test_its_life(api: kubernetes.client.ApiClient, helm: charts.Helm) -> None:
    before = charts.labelled(api, "tms", helm.namespace)
    assert before == set()

    helm.install("tms", STILL)
    installed = charts.labelled(api, "tms", helm.namespace)
    assert {("Deployment", "tms"), ("APIService", registration.NAME), *STAYS} <= installed
    first = _settings(api, helm.namespace)

    helm.upgrade("tms", {**STILL, "settings": {"log": {"level": "debug"}}, "service": {"type": "NodePort"}})
    assert charts.labelled(api, "tms", helm.namespace) == installed | {("Service", "tms-external")}
    assert "debug" in _settings(api, helm.namespace)

    helm.rollback("tms", 1)
    assert charts.labelled(api, "tms", helm.namespace) == installed
    assert _settings(api, helm.namespace) == first
    assert [status for _, status in helm.revisions("tms")] == ["superseded", "superseded", "deployed"]

    helm.uninstall("tms")
    assert charts.labelled(api, "tms", helm.namespace) == STAYS, "only the claim with the leases may stay"


def test_it_takes_up_the_claim_that_an_earlier_release_left(
    api: kubernetes.client.ApiClient, helm: charts.Helm
) -> None:
    helm.install("tms", STILL)
    left = _claim(api, helm.namespace)
    helm.uninstall("tms")
    helm.install("tms", STILL)
    assert _claim(api, helm.namespace) == left


def test_a_metrics_api_of_somebody_else_is_left_alone(api: kubernetes.client.ApiClient, helm: charts.Helm) -> None:
    with _somebody_elses(api) as theirs:
        helm.install("tms", STILL)
        assert _registered(api) == theirs
        assert '"register_service" = false' in _settings(api, helm.namespace)
        helm.upgrade("tms", {**STILL, "settings": {"log": {"level": "debug"}}})
        helm.uninstall("tms")
        assert _registered(api) == theirs


def test_its_own_metrics_api_stays_its_own_over_an_upgrade(api: kubernetes.client.ApiClient, helm: charts.Helm) -> None:
    helm.install("tms", STILL)
    # The server keeps its CA there; an upgrade must not take it away.
    services = kubernetes.client.ApiregistrationV1Api(api)
    services.patch_api_service(registration.NAME, {"spec": {"caBundle": "Q0E="}})
    helm.upgrade("tms", {**STILL, "settings": {"log": {"level": "debug"}}})
    kept = _registered(api)
    assert (kept["service"]["name"], kept["service"]["namespace"]) == ("tms", helm.namespace)
    assert kept["caBundle"] == "Q0E="
    assert '"register_service" = true' in _settings(api, helm.namespace)


def test_wrong_values_leave_nothing_behind(api: kubernetes.client.ApiClient, helm: charts.Helm) -> None:
    for wrong in ({"server": {"replica": 2}}, {"server": {"replicas": 2}}):
        with pytest.raises(helm_python.HelmError, match="replica"):
            helm.install("tms", wrong)
    assert charts.labelled(api, "tms", helm.namespace) == set()
    assert helm.config.list(all_states=True) == []


def test_the_account_may_do_what_the_server_does_and_no_more(
    api: kubernetes.client.ApiClient, helm: charts.Helm
) -> None:
    helm.install("tms", STILL)
    for each in kinds.ALL:
        for verb in each.verbs:
            assert _may(api, helm.namespace, verb, each.group, each.plural, each.namespaced), f"{verb} {each.plural}"
    for verb, group, resource in (
        ("create", "", "pods"),
        ("create", "", "pods/exec"),
        ("update", "apps", "deployments"),
        ("create", "rbac.authorization.k8s.io", "rolebindings"),
        ("list", "", "configmaps"),
        ("deletecollection", "", "secrets"),
    ):
        assert not _may(api, helm.namespace, verb, group, resource), f"{verb} {resource}"
    for verb, group, resource in (("list", "", "secrets"), ("list", "", "pods"), ("create", "apps", "deployments")):
        assert not _may(api, helm.namespace, verb, group, resource, own_namespace=False), f"{verb} {resource} elsewhere"
    assert not _may(api, helm.namespace, "patch", "", "nodes", own_namespace=False)
    assert not _may(api, helm.namespace, "create", "apiregistration.k8s.io", "apiservices", own_namespace=False)


def _where(resource: Any, each: charts.Object) -> dict[str, str]:
    return {"namespace": each["metadata"]["namespace"]} if resource.namespaced else {}


def _settings(api: kubernetes.client.ApiClient, namespace: str) -> str:
    found = kubernetes.client.CoreV1Api(api).read_namespaced_config_map("tms", namespace)
    assert found.data is not None
    return str(found.data["tms.toml"])


def _claim(api: kubernetes.client.ApiClient, namespace: str) -> str:
    found = kubernetes.client.CoreV1Api(api).read_namespaced_persistent_volume_claim("tms-data", namespace)
    assert found.metadata is not None
    return str(found.metadata.uid)


def _registered(api: kubernetes.client.ApiClient) -> Any:
    """What the APIService of the metrics says now."""
    found = kubernetes.client.ApiregistrationV1Api(api).read_api_service(registration.NAME)
    return api.sanitize_for_serialization(found.spec)  # type: ignore[no-untyped-call]  # theirs


def _may(
    api: kubernetes.client.ApiClient,
    namespace: str,
    verb: str,
    group: str,
    plural: str,
    own_namespace: bool = True,  # noqa: FBT001, FBT002 - reads as a sentence where it is given
) -> bool:
    """Whether the release's account may, in its own namespace or everywhere."""
    resource, _, subresource = plural.partition("/")
    attributes = kubernetes.client.V1ResourceAttributes(
        verb=verb, group=group, resource=resource, subresource=subresource, namespace=namespace if own_namespace else ""
    )
    user = f"system:serviceaccount:{namespace}:tms"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    review = kubernetes.client.V1SubjectAccessReview(
        spec=kubernetes.client.V1SubjectAccessReviewSpec(user=user, groups=groups, resource_attributes=attributes)
    )
    answer = kubernetes.client.AuthorizationV1Api(api).create_subject_access_review(review)
    assert answer.status is not None
    return bool(answer.status.allowed)


@contextlib.contextmanager
def _somebody_elses(api: kubernetes.client.ApiClient) -> collections.abc.Iterator[Any]:
    services = kubernetes.client.ApiregistrationV1Api(api)
    spec = kubernetes.client.V1APIServiceSpec(
        group="external.metrics.k8s.io",
        version="v1beta1",
        group_priority_minimum=200,
        version_priority=200,
        insecure_skip_tls_verify=True,
        service=kubernetes.client.ApiregistrationV1ServiceReference(name="adapter", namespace="default", port=443),
    )
    metadata = kubernetes.client.V1ObjectMeta(name=registration.NAME)
    services.create_api_service(kubernetes.client.V1APIService(metadata=metadata, spec=spec))
    try:
        yield _registered(api)
    finally:
        services.delete_api_service(registration.NAME)
