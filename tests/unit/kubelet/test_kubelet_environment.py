from __future__ import annotations

import base64
import typing

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.kubernetes.cluster.kubelet import environment

_POD: environment.Json = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a/b": "c"}},
    "spec": {"nodeName": "node"},
}


def _sources(**fields: typing.Any) -> environment.Sources:
    known = {"secrets": {}, "config_maps": {}, "services": [], "pod_ip": "10.244.1.2", "host_ip": "10.244.1.1"}
    return environment.Sources(**known | fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)-$(A)", "1-1"),
        ("$(B)", "$(B)"),
        ("$$(A)", "$(A)"),
        ("$A $( A )", "$A $( A )"),
        ("$(A", "$(A"),
        ("$", "$"),
    ],
)
def test_references_are_replaced_where_they_are_known(text: str, expected: str) -> None:
    assert environment.expand(text, {"A": "1"}) == expected


@hypothesis.given(st.text(alphabet="ab() "))
def test_text_without_a_dollar_stays(text: str) -> None:
    assert environment.expand(text, {"a": "x"}) == text


def test_a_variable_sees_those_before_it() -> None:
    container = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}]}
    assert environment.build(container, _POD, _sources())["B"] == "12"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metadata.labels['a/b']", "c"),
        ("metadata.labels['none']", ""),
        ("metadata.labels", 'a/b="c"'),
        ("status.podIP", "10.244.1.2"),
        ("status.hostIP", "10.244.1.1"),
        ("spec.nodeName", "node"),
    ],
)
def test_fields_of_the_pod_can_be_had(path: str, expected: str) -> None:
    assert environment.field(path, _POD, "10.244.1.2", "10.244.1.1") == expected


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(environment.ConfigurationError, match=r"spec\.color"):
        environment.field("spec.color", _POD, "", "")


def test_what_is_not_there_is_refused_unless_it_is_optional() -> None:
    reference = {"name": "s", "key": "k"}
    container = {"env": [{"name": "A", "valueFrom": {"secretKeyRef": reference}}]}
    with pytest.raises(environment.ConfigurationError, match='secret "s" not found'):
        environment.build(container, _POD, _sources(secrets={"s": None}))
    with pytest.raises(environment.ConfigurationError, match="couldn't find key k"):
        environment.build(container, _POD, _sources(secrets={"s": {}}))
    reference["optional"] = "true"
    assert "A" not in environment.build(container, _POD, _sources(secrets={"s": None}))


def test_names_of_needed_objects_are_found() -> None:
    container = {
        "envFrom": [{"secretRef": {"name": "a"}}, {"configMapRef": {"name": "b"}}],
        "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}, {"name": "Y"}],
    }
    assert environment.needs(container) == ({"a"}, {"b", "c"})


def test_services_of_the_namespace_become_variables_unless_the_pod_says_no() -> None:
    def service(namespace: str, name: str, address: str) -> environment.Json:
        ports = [{"name": "grpc-api", "port": 80}]
        return {
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": address, "ports": ports},
        }

    services = [
        service("default", "kubernetes", "10.0.0.1"),
        service("n", "tms-server", "10.0.0.2"),
        service("n", "headless", "None"),
        service("other", "far", "10.0.0.3"),
    ]
    variables = environment.service_links(_POD, services)
    assert variables["TMS_SERVER_PORT"] == "tcp://10.0.0.2:80"
    assert variables["TMS_SERVER_SERVICE_PORT_GRPC_API"] == "80"
    assert variables["TMS_SERVER_PORT_80_TCP_ADDR"] == "10.0.0.2"
    assert not any(name.startswith(("HEADLESS", "FAR")) for name in variables)
    silent = _POD | {"spec": {"enableServiceLinks": False}}
    assert {name.partition("_")[0] for name in environment.service_links(silent, services)} == {"KUBERNETES"}


@pytest.mark.parametrize(
    ("text", "expected"), [("250m", 0.25), ("2Gi", 2 << 30), ("1.5k", 1500), ("1e3", 1000), ("7", 7)]
)
def test_quantities_are_numbers(text: str, expected: float) -> None:
    assert environment.quantity(text) == expected


def test_resources_are_rounded_up_to_the_divisor() -> None:
    container = {"name": "c", "resources": {"limits": {"memory": "1500Ki", "cpu": "1500m"}}}
    assert environment.resource({"resource": "limits.memory", "divisor": "1Mi"}, [container], container) == "2"
    assert environment.resource({"resource": "limits.cpu"}, [container], container) == "2"


def test_data_of_objects_is_bytes() -> None:
    encoded = base64.b64encode(b"\0x").decode()
    assert environment.data_of({"kind": "Secret", "data": {"a": encoded}}) == {"a": b"\0x"}
    assert environment.data_of({"kind": "ConfigMap", "data": {"a": "x"}, "binaryData": {"b": encoded}}) == {
        "a": b"x",
        "b": b"\0x",
    }
