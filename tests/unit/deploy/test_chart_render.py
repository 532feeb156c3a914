"""The chart lints, and what it renders for each choice is what Kubernetes accepts and the server understands."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import helm_python
import kubernetes_validate  # type: ignore[import-untyped]  # theirs
import pytest

from deploy.helm import documented
from tests.unit.deploy import charts
from tests.unit.deploy.charts import MATRIX, POSTGRES, Object

VERSION = "1.36.0"
# Kinds that Kubernetes itself does not define: the keys that their operators know, as far as the chart uses them.
FOREIGN = {
    "ServiceMonitor": {"namespaceSelector", "selector", "endpoints"},
    "PodMonitor": {"namespaceSelector", "selector", "podMetricsEndpoints"},
    "PrometheusRule": {"groups"},
    "Certificate": {
        "secretName", "duration", "renewBefore", "usages", "privateKey", "dnsNames", "ipAddresses", "issuerRef",
    },
}  # fmt: skip

matrix = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)


@matrix
def test_it_lints(values: Mapping[str, Any]) -> None:
    report = helm_python.lint(documented.CHART, dict(values), strict=True, kube_version=f"v{VERSION}")
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


@matrix
def test_every_object_is_valid(values: Mapping[str, Any]) -> None:
    objects = charts.render(values)
    assert objects
    for each in objects:
        if each["kind"] in FOREIGN:
            assert set(each["spec"]) <= FOREIGN[each["kind"]]
        else:
            kubernetes_validate.validate(each, VERSION, strict=True)


@matrix
def test_every_object_says_whose_it_is(values: Mapping[str, Any]) -> None:
    for each in charts.render(values):
        assert each["metadata"]["labels"]["app.kubernetes.io/part-of"] == "tms"
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "tms"
        names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])]
        assert len(names) == len(set(names))


@matrix
def test_the_server_understands_its_settings(values: Mapping[str, Any], tmp_path: pathlib.Path) -> None:
    told = charts.told(charts.render(values), tmp_path)
    assert told.backend == "kubernetes"
    assert told.kubernetes.dial == "tms.serving.svc:30345"
    assert "default" in told.kubernetes.profiles


@matrix
def test_pods_pass_the_restricted_standard(values: Mapping[str, Any]) -> None:
    pods = [each["spec"]["template"]["spec"] for each in charts.render(values) if each["kind"] in ("Deployment", "Job")]
    assert pods
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]
            mounted = {each["name"] for each in container["volumeMounts"]}
            assert mounted <= {each["name"] for each in pod["volumes"]}


def test_the_settings_are_those_that_were_asked_for(tmp_path: pathlib.Path) -> None:
    told = charts.told(charts.render(MATRIX["fleet"]), tmp_path)
    assert told.kubernetes.profiles["a100"].memory_bytes == 80 * 2**30
    assert told.kubernetes.profiles["a100"].tolerations[0]["key"] == "nvidia.com/gpu"
    assert told.kubernetes.profiles["a100"].image_pull_secrets == ("registry",)
    assert told.kubernetes.worker_image == "registry.example:5000/ai/tms/worker:0.1.0-cuda"
    assert told.kubernetes.strict
    assert told.kubernetes.programs["triton"].command == ("tritonserver",)
    assert told.pools["a100"].profile == "a100"
    assert told.pools["team/small"].memory_bytes == 2**31
    assert not told.default_pool.enabled
    assert told.images == ("registry.example/tritonserver:*",)
    assert told.lease_times.hold_s == 1800.5
    assert told.repositories["models"].keys.directory == pathlib.Path("/tms/keys/models")
    assert told.repositories["open"].keys.source == "anonymous"
    assert told.repositories["shared"].path == pathlib.Path("/tms/repositories/shared")
    assert (told.repositories["node"].host_path, str(told.repositories["node"].path)) == ("/srv/models", "/models")
    assert told.api.stop_grace_s == 10
    assert told.log.level == "debug"


@pytest.mark.parametrize("text", ['"', "\\", "\n", "'''", "é", "$(A)", "{{ .Values }}", "#", "\u007f", "</script>&"])
def test_any_text_reaches_the_server_unchanged(text: str, tmp_path: pathlib.Path) -> None:
    values = {"profiles": {"default": {"annotations": {f"k{text}": f"<{text}>"}}}}
    told = charts.told(charts.render(values), tmp_path)
    assert told.kubernetes.profiles["default"].annotations == {f"k{text}": f"<{text}>"}


def test_one_server_holds_sqlite_at_a_time() -> None:
    objects = charts.render({})
    server = charts.only(objects, "Deployment", "tms")["spec"]
    assert (server["replicas"], server["strategy"]) == (1, {"type": "Recreate"})
    claim = charts.only(objects, "PersistentVolumeClaim", "tms-data")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "tms-data"}} in server["template"]["spec"]["volumes"]
    assert not list(charts.of_kind(objects, "Job"))


def test_several_servers_share_postgres_and_roll(tmp_path: pathlib.Path) -> None:
    objects = charts.render(POSTGRES)
    server = charts.only(objects, "Deployment", "tms")["spec"]
    assert server["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    (container,) = server["template"]["spec"]["containers"]
    assert container["lifecycle"] == {"preStop": {"sleep": {"seconds": 3}}}
    assert not list(charts.of_kind(objects, "PersistentVolumeClaim"))
    assert charts.only(objects, "PodDisruptionBudget", "tms")["spec"]["maxUnavailable"] == 1
    for pod in (server, charts.only(objects, "Job", "tms-migrate")["spec"]):
        assert _database(pod["template"]["spec"]) == {"name": "tms-postgres", "key": "url"}
    assert not charts.told(objects, tmp_path).migrate_at_start


def test_a_database_url_stays_out_of_everything_but_secrets() -> None:
    objects = charts.render(MATRIX["postgres-url"])
    holders = [each for each in objects if "secret@db.example" in str(each)]
    assert {each["kind"] for each in holders} == {"Secret"}
    job = charts.only(objects, "Job", "tms-migrate")
    # A hook runs before the release's objects are there: what it uses must be a hook of lesser weight.
    used = charts.only(objects, "Secret", _database(job["spec"]["template"]["spec"])["name"])
    weight = "helm.sh/hook-weight"
    assert int(used["metadata"]["annotations"][weight]) < int(job["metadata"]["annotations"][weight])


def test_a_migration_reaches_the_database_with_what_the_servers_have() -> None:
    authority = {"name": "authority", "configMap": {"name": "postgres-ca"}}
    mount = {"name": "authority", "mountPath": "/authority", "readOnly": True}
    variable = {"name": "PGSSLROOTCERT", "value": "/authority/ca.crt"}
    extra = {"extraVolumes": [authority], "extraVolumeMounts": [mount], "extraEnv": [variable]}
    objects = charts.render({"database": {"existingSecret": "tms-postgres"}, "server": extra})
    for each in (charts.only(objects, "Deployment", "tms"), charts.only(objects, "Job", "tms-migrate")):
        kubernetes_validate.validate(each, VERSION, strict=True)
        pod = each["spec"]["template"]["spec"]
        assert authority in pod["volumes"]
        assert mount in pod["containers"][0]["volumeMounts"]
        assert variable in pod["containers"][0]["env"]


@pytest.mark.parametrize(
    ("images", "policy"),
    [
        ({}, "Never"),
        ({"server": {"repository": "team/tms"}}, "Never"),
        ({"pullPolicy": "IfNotPresent"}, "IfNotPresent"),
        ({"registry": "registry.example/ai"}, None),
        ({"server": {"repository": "registry.example/tms"}}, None),
        ({"server": {"repository": "localhost/tms"}}, None),
        ({"registry": "registry.example/ai", "pullPolicy": "Always"}, "Always"),
    ],
)
def test_an_image_that_names_no_registry_is_not_asked_of_a_public_one(images: Object, policy: str | None) -> None:
    objects = charts.render({**POSTGRES, "images": images})
    for each in (charts.only(objects, "Deployment", "tms"), charts.only(objects, "Job", "tms-migrate")):
        assert each["spec"]["template"]["spec"]["containers"][0].get("imagePullPolicy") == policy


def test_a_release_may_be_called_by_a_number() -> None:
    for each in charts.render(POSTGRES, name="123"):
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "123"
        kubernetes_validate.validate(each, VERSION, strict=True)


def test_a_certificate_has_the_names_that_clients_dial() -> None:
    made = charts.only(charts.render(MATRIX["cert-manager"]), "Certificate", "tms")["spec"]
    assert {"tms.serving.svc", "localhost", "tms.example"} <= set(made["dnsNames"])
    assert made["ipAddresses"] == ["127.0.0.1", "192.0.2.7"]


def test_the_api_alone_is_shown_to_the_outside() -> None:
    for choice in ("node-port", "load-balancer"):
        objects = charts.render(MATRIX[choice])
        assert charts.only(objects, "Service", "tms")["spec"]["type"] == "ClusterIP"
        outside = charts.only(objects, "Service", "tms-external")["spec"]
        assert [each["name"] for each in outside["ports"]] == ["api"]
        ranges = MATRIX[choice]["service"].get("loadBalancerSourceRanges")
        assert outside.get("loadBalancerSourceRanges") == ranges
    assert [each["metadata"]["name"] for each in charts.of_kind(charts.render({}), "Service")] == ["tms"]


@matrix
def test_probes_and_services_find_their_ports(values: Mapping[str, Any]) -> None:
    objects = charts.render(values)
    (container,) = charts.only(objects, "Deployment", "tms")["spec"]["template"]["spec"]["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    for service in charts.of_kind(objects, "Service"):
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= ports.keys()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        mode = values.get("tls", {}).get("mode", "managed")
        # Kubernetes' gRPC probe knows no TLS.
        if mode == "off":
            assert container[probe]["grpc"]["port"] == ports["api"]
        else:
            assert container[probe]["httpGet"]["scheme"] == ("HTTP" if mode == "managed" else "HTTPS")
            assert container[probe]["httpGet"]["port"] in ports


def test_two_releases_share_no_name() -> None:
    def names(release: str) -> set[tuple[str, str]]:
        objects = charts.render(MATRIX["postgres"], name=release)
        # The API group is one of the cluster: whoever comes second leaves it alone.
        return {(each["kind"], each["metadata"]["name"]) for each in objects if each["kind"] != "APIService"}

    assert not names("one") & names("two")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"server": {"replicas": 2}}, ("server.replicas", "database.existingSecret")),
        ({"database": {"url": "mysql://db/tms"}}, ("database.url", "postgresql://")),
        ({"tls": {"mode": "secret"}}, ("tls.secretName", "ca.crt")),
        ({"tls": {"mode": "secret", "secretName": "x"}}, ("tls.caConfigMap", "ca.crt")),
        ({"tls": {"mode": "secret", "secretName": "x", "caConfigMap": "tms-ca"}}, ("tls.caConfigMap", "another")),
        ({"tls": {"caConfigMap": "x"}}, ("tls.caConfigMap", "managed")),
        ({"tls": {"mode": "certManager", "caConfigMap": "x"}}, ("tls.certManager.issuerRef.name",)),
        ({"service": {"nodePort": 30000}}, ("service.nodePort", "NodePort")),
        ({"service": {"loadBalancerClass": "x"}}, ("service.loadBalancerClass",)),
        ({"service": {"type": "LoadBalancer"}}, ("service.loadBalancerSourceRanges", "service.openToAll")),
        ({"service": {"openToAll": True}}, ("service.openToAll", "LoadBalancer")),
        ({"pools": {"a": {"profile": "b"}}}, ("pools.a.profile", "profiles.b")),
        ({"repositories": {"m": {"region": "x"}}}, ("repositories.m", "bucket", "claim", "host_path")),
        ({"repositories": {"m": {"bucket": "x", "claim": "y"}}}, ("repositories.m", "one of")),
        ({"repositories": {"m": {"bucket": "x", "path": "/y"}}}, ("repositories.m.path",)),
        ({"repositories": {"m": {"url": "https://h", "gcs_bucket": "y"}}}, ("repositories.m", "one of")),
        ({"repositories": {"m": {"url": "https://h", "path": "/y"}}}, ("repositories.m.path",)),
        (
            {"repositories": {"m": {"bucket": "b", "existingSecret": "s", "keys": {"source": "environment"}}}},
            ("repositories.m", "existingSecret"),
        ),
    ],
)
def test_values_that_exclude_each_other_are_refused_with_the_remedy(values: Object, words: tuple[str, ...]) -> None:
    with pytest.raises(helm_python.HelmRenderError) as refused:
        charts.render(values)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("service", "blocks"),
    [
        ({}, []),
        ({"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"]}, ["192.0.2.0/24"]),
        ({"type": "LoadBalancer", "openToAll": True}, ["0.0.0.0/0"]),
        ({"type": "NodePort"}, ["0.0.0.0/0"]),
    ],
)
def test_the_outside_reaches_the_api_from_where_the_service_says(service: Object, blocks: list[str]) -> None:
    policy = charts.only(charts.render({"service": service}), "NetworkPolicy", "tms-server")["spec"]
    (rule,) = (each for each in policy["ingress"] if {"port": 30345, "protocol": "TCP"} in each["ports"])
    assert [peer["ipBlock"]["cidr"] for peer in rule["from"] if "ipBlock" in peer] == blocks


def test_who_may_speak_to_whom() -> None:
    objects = charts.render(POSTGRES)
    server = charts.only(objects, "NetworkPolicy", "tms-server")["spec"]
    workers = charts.only(objects, "NetworkPolicy", "tms-workers")["spec"]
    for each in charts.of_kind(objects, "NetworkPolicy"):
        assert each["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert _ports(server["ingress"]) == {30345, 30346, 30347}
    assert _ports(workers["ingress"]) == {8000, 8001, 8002}
    assert _ports(server["egress"]) == {53, 443, 6443, 5432, 8000, 8001, 8002}
    assert _ports(workers["egress"]) == {53, 443, 30345}


def _ports(rules: list[Object]) -> set[int]:
    return {port["port"] for rule in rules for port in rule["ports"]}


def _database(pod: Object) -> dict[str, str]:
    (variable,) = (each for each in pod["containers"][0]["env"] if each["name"] == "TMS_DATABASE_URL")
    found: dict[str, str] = variable["valueFrom"]["secretKeyRef"]
    return found


def test_names_that_clients_dial_reach_the_server(tmp_path: pathlib.Path) -> None:
    told = charts.told(charts.render({"tls": {"names": ["tms.example", "192.0.2.7"]}}), tmp_path)
    assert told.tls.managed
    assert told.tls.names == ("tms.example", "192.0.2.7")
