"""The server's account may do what the server does, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.unit.deploy import charts
from tms_server.backends.kubernetes import kinds
from tms_server.metrics_api import registration

Right = tuple[str, str, str]


def test_the_role_grants_exactly_what_the_backend_does() -> None:
    role = charts.only(charts.render({}), "Role", "tms")
    backend = {(verb, each.group, each.plural) for each in kinds.ALL if each.namespaced for verb in each.verbs}
    assert set(_rights(role, named=False)) == backend | {("create", "", "configmaps")}
    assert set(_rights(role, named=True)) == {("get", "", "configmaps"), ("patch", "", "configmaps")}
    (named,) = (each for each in role["rules"] if "resourceNames" in each)
    assert named["resourceNames"] == ["tms-ca"]


def test_without_certificates_of_its_own_it_keeps_no_authority() -> None:
    own = {
        "tls": {"mode": "secret", "secretName": "mine", "caConfigMap": "authority"},
        "metricsApi": {"enabled": False},
    }
    role = charts.only(charts.render(own), "Role", "tms")
    assert "configmaps" not in [resource for rule in role["rules"] for resource in rule["resources"]]


def test_nodes_are_read_only_where_the_administrator_says_so() -> None:
    nodes = charts.only(charts.render({}), "ClusterRole", "serving:tms:nodes")
    assert set(_rights(nodes, named=False)) == {(verb, "", "nodes") for verb in kinds.NODES.verbs}
    without = charts.render({"rbac": {"nodes": False}})
    assert "serving:tms:nodes" not in [each["metadata"]["name"] for each in charts.of_kind(without, "ClusterRole")]


def test_what_is_cluster_wide_is_for_the_metrics_api_alone() -> None:
    objects = charts.render({"rbac": {"nodes": False}})
    account = {"kind": "ServiceAccount", "name": "tms", "namespace": charts.NAMESPACE}
    held = [
        each["roleRef"]["name"] for each in charts.of_kind(objects, "ClusterRoleBinding") if account in each["subjects"]
    ]
    assert held == ["serving:tms:metrics-api"]
    role = charts.only(objects, "ClusterRole", held[0])
    assert set(_rights(role, named=False)) == {
        ("create", "authentication.k8s.io", "tokenreviews"),
        ("create", "authorization.k8s.io", "subjectaccessreviews"),
    }
    (named,) = (each for each in role["rules"] if "resourceNames" in each)
    assert named["resourceNames"] == [registration.NAME]
    without = charts.render({"rbac": {"nodes": False}, "metricsApi": {"enabled": False}})
    assert not [each for each in without if each["kind"] in ("ClusterRole", "ClusterRoleBinding", "APIService")]


def test_no_rule_of_the_server_is_a_wildcard() -> None:
    for choice in charts.MATRIX.values():
        for role in charts.render(choice):
            if role["kind"] in ("Role", "ClusterRole") and not role["metadata"]["name"].endswith(":metrics-reader"):
                assert not [right for right in _rights(role, named=False) if "*" in right]


def test_with_workers_elsewhere_the_servers_own_namespace_grants_its_certificates_only() -> None:
    objects = charts.render(charts.MATRIX["workers-elsewhere"])
    own = charts.only(objects, "Role", "tms-server")
    assert own["metadata"]["namespace"] == charts.NAMESPACE
    assert set(_rights(own, named=False)) == {("create", "", "secrets")}
    (named,) = (each for each in own["rules"] if "resourceNames" in each)
    assert named["resourceNames"] == ["tms-serving"]
    assert charts.only(objects, "Role", "tms")["metadata"]["namespace"] == "gpu-workers"


def test_every_binding_is_of_a_role_that_is_there() -> None:
    for choice in charts.MATRIX.values():
        objects = charts.render(choice)
        made = {(each["kind"], each["metadata"]["name"]) for each in objects}
        made.add(("Role", "extension-apiserver-authentication-reader"))  # Kubernetes' own
        for each in objects:
            if each["kind"].endswith("Binding"):
                assert (each["roleRef"]["kind"], each["roleRef"]["name"]) in made


def _rights(role: Mapping[str, Any], *, named: bool) -> Iterator[Right]:
    for rule in role["rules"]:
        if ("resourceNames" in rule) == named:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    yield from ((verb, group, resource) for verb in rule["verbs"])
