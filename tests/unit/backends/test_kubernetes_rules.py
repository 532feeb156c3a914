"""Names, amounts, comparisons and refusals of the Kubernetes backend."""

from __future__ import annotations

import copy
import fractions
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import kubernetes_backend as support
from tms_server.backends.kubernetes import covers, failures, manifests, names, quantities, refusals, rights
from tms_server.model import errors, ids, resources

TENANTS = st.from_regex(r"\A[a-z][a-z0-9-]{0,62}\Z").map(ids.Namespace)
NAMES = st.from_regex(r"\A[a-z][a-z0-9-]{0,62}\Z").map(ids.LeaseName)


@pytest.mark.parametrize(
    ("owner", "service"),
    [
        ("lease/l-0123456789abcdef", "l-0123456789abcdef"),
        ("group/w-1", "w-1"),
        ("name/default/digits", "digits"),
        ("name/vision/digits", "vision--digits"),
    ],
)
def test_services_are_named_after_their_owner(owner: str, service: str) -> None:
    assert names.service_of(owner) == service


@pytest.mark.parametrize("owner", ["", "lease", "pool/x", "name/x"])
def test_an_owner_that_is_none_is_refused(owner: str) -> None:
    with pytest.raises(errors.InvalidField, match="owner"):
        names.service_of(owner)


@pytest.mark.parametrize(
    ("tenant", "name"),
    [
        ("default", "a" * 55),
        ("default", "a-"),
        ("default", "a--b"),
        ("a--b", "c"),
        ("default", "a-headless"),
        ("default", "l-0123456789abcdef"),
        ("default", "w-0123456789abcdef"),
        ("a" * 40, "b" * 40),
    ],
)
def test_names_without_an_address_are_refused(tenant: str, name: str) -> None:
    assert "name: " in (names.refuse(ids.Namespace(tenant), ids.LeaseName(name)) or "")


@given(TENANTS, NAMES, TENANTS, NAMES)
def test_two_names_never_share_a_service(
    tenant: ids.Namespace, name: ids.LeaseName, other_tenant: ids.Namespace, other: ids.LeaseName
) -> None:
    if (tenant, name) == (other_tenant, other) or names.refuse(tenant, name) or names.refuse(other_tenant, other):
        return
    services = [names.service_of(f"name/{tenant}/{name}"), names.service_of(f"name/{other_tenant}/{other}")]
    assert len({*services, *(f"{each}{names.HEADLESS}" for each in services)}) == 4
    assert all(len(f"{each}{names.HEADLESS}") <= 63 for each in services)


@given(st.integers(min_value=0, max_value=2**62))
def test_amounts_are_read_as_they_were_written(amount: int) -> None:
    assert quantities.parse(quantities.of_bytes(amount)) == amount
    assert quantities.parse(quantities.of_milli(amount)) == fractions.Fraction(amount, 1000)


@pytest.mark.parametrize(
    ("text", "amount"), [("1Gi", 2**30), ("1500m", fractions.Fraction(3, 2)), ("2k", 2000), ("1e3", 1000), ("x", None)]
)
def test_amounts_are_read_in_every_unit(text: str, amount: object) -> None:
    assert quantities.parse(text) == amount


def deployment() -> Any:
    return copy.deepcopy(manifests.of_group(support.spec(), support.options()).deployment)


def test_defaults_and_what_others_add_beside_are_no_difference() -> None:
    live = deployment()
    live["status"] = {"replicas": 1}
    live["spec"]["progressDeadlineSeconds"] = 600
    live["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "3"
    pod = live["spec"]["template"]["spec"]
    pod["dnsPolicy"] = "ClusterFirst"
    pod["containers"].insert(0, {"name": "mesh", "image": "mesh:1"})
    pod["containers"][1]["terminationMessagePath"] = "/dev/termination-log"
    del live["spec"]["paused"]
    assert covers.covers(deployment(), live)


@pytest.mark.parametrize(
    "edit",
    [
        lambda pod: pod["containers"][0].update(image="other"),
        lambda pod: pod["containers"][0]["args"].append("--more"),
        lambda pod: pod["containers"].clear(),
        lambda pod: pod["containers"][0]["resources"]["limits"].update(memory="1Ki"),
        lambda pod: pod.pop("securityContext"),
        lambda pod: pod.update(tolerations=[]),
    ],
)
def test_edits_are_a_difference(edit: Any) -> None:
    live = deployment()
    edit(live["spec"]["template"]["spec"])
    assert not covers.covers(deployment(), live)


def test_a_key_more_in_a_selector_is_a_difference() -> None:
    (service, _) = manifests.of_owner("lease/l-1", support.LEASE, support.options())
    live = copy.deepcopy(service)
    live["spec"]["selector"]["app"] = "other"
    assert not covers.covers(service, live)


def test_the_same_amount_written_otherwise_is_no_difference() -> None:
    live = deployment()
    limits = live["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["memory"] == "4608Mi"
    limits["memory"] = str(4608 * 2**20)
    assert covers.covers(deployment(), live)


@pytest.mark.parametrize(
    ("worker", "field"),
    [
        (resources.WorkerSpec(profile="unknown"), "profile"),
        (resources.WorkerSpec(command="unknown"), "command"),
        (resources.WorkerSpec(image=" x"), "image"),
        (resources.WorkerSpec(image="tms/../../evil:1"), "image"),
        (resources.WorkerSpec(image="tms/UPPER:1"), "image"),
        (resources.WorkerSpec(image="tms//worker"), "image"),
        (resources.WorkerSpec(image="tms/worker:1@sha256:12"), "image"),
        (resources.WorkerSpec(resources=resources.Resources(gpus=1)), "resources.gpus"),
        (resources.WorkerSpec(profile="full", resources=resources.Resources(gpus=17)), "resources.gpus"),
    ],
)
def test_workers_that_could_never_run_are_refused_by_field(worker: resources.WorkerSpec, field: str) -> None:
    assert (refusals.refuse(support.options(), worker) or "").startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (401, "Unauthorized", errors.PermissionDenied),
        (403, '{"message": "User \\"u\\" cannot list resource \\"pods\\""}', errors.PermissionDenied),
        (403, '{"message": "pods \\"x\\" is forbidden: exceeded quota: q"}', failures.Exhausted),
        (403, '{"message": "violates PodSecurity"}', failures.Refused),
        (404, "{}", errors.NotFound),
        (409, '{"reason": "AlreadyExists"}', errors.AlreadyExists),
        (409, '{"reason": "Conflict"}', errors.Conflict),
        (410, "{}", errors.RevisionGone),
        (422, "[]", failures.Refused),
        (500, "", errors.Unavailable),
        (504, "", errors.Unavailable),
    ],
)
def test_answers_become_errors_of_the_control_plane(status: int, text: str, kind: type[errors.TmsError]) -> None:
    failure = failures.of_answer(status, text, "GET /x")
    assert type(failure) is kind
    assert "GET /x" in str(failure)


def test_rules_of_the_authorizer_are_read() -> None:
    rules = [
        {"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]},
        {"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*"]},
        {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["one"]},
    ]
    assert rights.allowed(rules, ("list", "", "pods"))
    assert rights.allowed(rules, ("delete", "apps", "deployments"))
    assert not rights.allowed(rules, ("watch", "", "pods"))
    assert not rights.allowed(rules, ("get", "", "secrets"))
