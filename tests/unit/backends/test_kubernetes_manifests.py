"""What is applied: valid for Kubernetes, restricted, and as the administrator's profile says."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # ships no types
import pytest

from tests.support import kubernetes_backend as support
from tms_server.backends.kubernetes import manifests, names
from tms_server.backends.kubernetes import options as options_module
from tms_server.fleet import desired
from tms_server.model import ids, lease, resources
from tms_server.ports import backend

OPTIONS = support.options()
RICH = support.spec(worker=resources.WorkerSpec(profile="full", resources=resources.Resources(gpus=2)))
SCALED = dataclasses.replace(RICH, scaling=support.SCALING)


def pod(spec: backend.LaunchSpec, options: options_module.Options = OPTIONS) -> Any:
    return manifests.of_group(spec, options).deployment["spec"]["template"]["spec"]


def worker(spec: backend.LaunchSpec, options: options_module.Options = OPTIONS) -> Any:
    return pod(spec, options)["containers"][0]


def sidecar(spec: backend.LaunchSpec, options: options_module.Options = OPTIONS) -> Any:
    return pod(spec, options)["initContainers"][0]


def with_profile(**changed: Any) -> options_module.Options:
    return support.options(profiles={"default": options_module.Profile(**changed)})


def everything() -> list[Any]:
    groups = [manifests.of_group(spec, OPTIONS) for spec in (support.spec(), RICH, SCALED)]
    found = [each for group in groups for each in (group.secret, group.deployment, group.scaler) if each is not None]
    name = desired.name_owner(ids.DEFAULT_NAMESPACE, ids.LeaseName("digits"))
    return [*found, *manifests.of_owner(name, support.LEASE, OPTIONS), manifests.of_budget(OPTIONS)]


@pytest.mark.parametrize("manifest", everything(), ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_the_schema_of_kubernetes_knows_every_field(manifest: Any) -> None:
    kubernetes_validate.validate(manifest, "1.36", strict=True)


@pytest.mark.parametrize("manifest", everything(), ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_every_object_says_whose_it_is(manifest: Any) -> None:
    labels = manifest["metadata"]["labels"]
    assert names.marks(OPTIONS.installation_id).items() <= labels.items()
    assert manifest["metadata"]["namespace"] == OPTIONS.namespace


def test_the_administrators_labels_never_take_a_pod_out_of_its_group() -> None:
    template = manifests.of_group(RICH, OPTIONS).deployment["spec"]["template"]
    assert template["metadata"]["labels"][names.GROUP] == RICH.group_id
    assert template["metadata"]["labels"]["team"] == "vision"


def test_pods_have_no_token_for_the_api_server() -> None:
    assert pod(RICH)["automountServiceAccountToken"] is False
    projected = [each["projected"] for each in pod(RICH)["volumes"] if "projected" in each]
    (source,) = projected[0]["sources"]
    assert source["serviceAccountToken"]["audience"] == "sts.example.com"
    assert not any("projected" in each for each in pod(support.spec())["volumes"])


def test_every_mount_has_a_volume_and_every_volume_a_mount() -> None:
    for options in (OPTIONS, support.options(ca_config_map="ca")):
        for spec in (support.spec(), RICH):
            mounted = {each["name"] for part in (worker, sidecar) for each in part(spec, options)["volumeMounts"]}
            assert mounted == {each["name"] for each in pod(spec, options)["volumes"]}


def test_devices_are_asked_for_by_the_profiles_resource() -> None:
    assert worker(RICH)["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert worker(RICH)["resources"]["requests"]["nvidia.com/gpu"] == "2"
    assert "nvidia.com/gpu" not in worker(support.spec())["resources"]["limits"]


def test_memory_is_what_models_book_and_the_overhead() -> None:
    options = with_profile(memory_overhead_bytes=2**30)
    asked = support.spec(worker=resources.WorkerSpec(resources=resources.Resources(memory_bytes=3 * 2**30)))
    assert worker(asked, options)["resources"]["limits"]["memory"] == "4Gi"
    assert worker(support.spec(), options)["resources"]["limits"]["memory"] == "5Gi"
    assert worker(asked, with_profile(host_memory_bytes=2**20))["resources"]["limits"]["memory"] == "3584Mi"


def test_models_on_devices_take_no_memory_of_the_host() -> None:
    asked = support.spec(worker=resources.WorkerSpec(resources=resources.Resources(gpus=1, memory_bytes=80 * 2**30)))
    options = with_profile(gpu_resource="nvidia.com/gpu", host_memory_bytes=2**30)
    assert worker(asked, options)["resources"]["limits"]["memory"] == "1Gi"


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        (options_module.Cache(claim="models"), {"persistentVolumeClaim": {"claimName": "models"}}),
        (options_module.Cache(host_path="/c"), {"hostPath": {"path": "/c", "type": "DirectoryOrCreate"}}),
    ],
)
def test_a_cache_that_pods_share_has_a_volume_of_its_own(cache: options_module.Cache, volume: Any) -> None:
    made = pod(support.spec(), with_profile(cache=cache))
    assert {"name": "cache", **volume} in made["volumes"]
    assert "--cache-dir=/tms/cache" in made["initContainers"][0]["args"]


def test_a_bounded_cache_is_kept_below_its_volume_by_the_sidecar() -> None:
    own, shared = (
        pod(support.spec(), with_profile(cache=options_module.Cache(size_bytes=2000, claim=claim)))
        for claim in ("", "c")
    )
    assert "--cache-budget=1900" in own["initContainers"][0]["args"]
    assert "--cache-budget=2000" in shared["initContainers"][0]["args"]
    assert {"name": "models", "emptyDir": {}} in shared["volumes"]


@pytest.mark.parametrize(("size_bytes", "volume"), [(0, {}), (2**30, {"sizeLimit": "1Gi"})])
def test_the_pods_own_cache_lies_beside_the_models_so_that_links_suffice(size_bytes: int, volume: Any) -> None:
    made = pod(support.spec(), with_profile(cache=options_module.Cache(size_bytes=size_bytes)))
    assert {"name": "models", "emptyDir": volume} in made["volumes"]
    assert "--cache-dir=/tms/models/.cache" in made["initContainers"][0]["args"]
    assert "cache" not in {each["name"] for each in made["volumes"]}


def test_what_drains_and_stops_fits_into_the_grace_period() -> None:
    options = dataclasses.replace(with_profile(termination_grace_s=60), connection_age_s=10.0)
    hook = worker(support.spec(), options)["lifecycle"]["preStop"]["httpGet"]
    assert hook["path"] == "/drain?timeout_s=43"
    assert "--model-stay=11" in pod(support.spec(), options)["initContainers"][0]["args"]


def test_the_servers_ca_is_given_where_there_is_one() -> None:
    assert "--server-ca=/tms/ca/ca.crt" in sidecar(support.spec(), support.options(ca_config_map="ca"))["args"]
    assert "--server-ca=/tms/ca/ca.crt" not in sidecar(support.spec())["args"]


def test_a_lost_node_is_left_after_the_profiles_time() -> None:
    tolerations = pod(support.spec(), with_profile(lost_node_s=7))["tolerations"]
    assert {each["key"]: each["tolerationSeconds"] for each in tolerations} == {
        "node.kubernetes.io/not-ready": 7,
        "node.kubernetes.io/unreachable": 7,
    }


def test_a_program_brings_its_own_command_and_an_image_of_the_lease_replaces_its_own() -> None:
    triton = worker(support.spec(worker=resources.WorkerSpec(command="triton", image="mine:1")))
    assert (triton["image"], triton["command"], triton["args"]) == (
        "mine:1",
        ["tritonserver"],
        ["--model-repository=x"],
    )


def test_replicas_are_said_only_where_nobody_else_owns_them() -> None:
    assert manifests.of_group(dataclasses.replace(RICH, replicas=3), OPTIONS).deployment["spec"]["replicas"] == 3
    scaled = manifests.of_group(SCALED, OPTIONS).deployment
    assert "replicas" not in scaled["spec"]
    assert manifests.with_replicas(scaled, 2)["spec"]["replicas"] == 2


def test_times_and_ratios_are_compared_whole_and_sums_by_the_replica() -> None:
    scaler = manifests.of_group(SCALED, OPTIONS).scaler
    assert scaler is not None
    externals = [each["external"] for each in scaler["spec"]["metrics"]]
    assert [(each["metric"]["name"], each["target"]) for each in externals] == [
        ("tms_queue_time", {"type": "Value", "value": "5"}),
        ("tms_in_flight", {"type": "AverageValue", "averageValue": "2000"}),
        ("tms_latency", {"type": "Value", "value": "1500m"}),
    ]
    assert externals[2]["metric"]["selector"]["matchLabels"] == {"lease": support.LEASE, "quantile": "990"}
    assert externals[0]["metric"]["selector"]["matchLabels"] == {"lease": support.LEASE}


def behavior(given: lease.ScalingBehavior, load_s: float = 0.0) -> Any:
    asked = dataclasses.replace(support.SCALING.autoscaling, behavior=given)
    scaling = dataclasses.replace(support.SCALING, autoscaling=asked, load_s=load_s)
    scaler = manifests.of_group(dataclasses.replace(RICH, scaling=scaling), OPTIONS).scaler
    assert scaler is not None
    return scaler["spec"]["behavior"]


def test_growth_waits_at_least_one_load() -> None:
    window = dt.timedelta(seconds=5)
    up = behavior(lease.ScalingBehavior(scale_up_window=window), load_s=12.3)["scaleUp"]
    assert up["stabilizationWindowSeconds"] == 13
    up = behavior(lease.ScalingBehavior(scale_up_window=window), load_s=1)["scaleUp"]
    assert up["stabilizationWindowSeconds"] == 5
    assert behavior(lease.ScalingBehavior(), load_s=1e9)["scaleUp"]["stabilizationWindowSeconds"] == 3600


def test_a_step_is_bounded_only_where_asked() -> None:
    given = behavior(lease.ScalingBehavior(max_step_down=2, period=dt.timedelta(seconds=20)))
    assert given["scaleDown"]["policies"] == [{"type": "Pods", "value": 2, "periodSeconds": 20}]
    assert given["scaleUp"]["policies"] == [{"type": "Pods", "value": 5, "periodSeconds": 20}]
    assert "stabilizationWindowSeconds" not in given["scaleDown"]


def test_a_service_and_its_headless_twin_lead_to_the_lease_they_point_at() -> None:
    plain, twin = manifests.of_owner(desired.lease_owner(support.LEASE), support.LEASE, OPTIONS)
    assert (plain["metadata"]["name"], twin["metadata"]["name"]) == (support.LEASE, f"{support.LEASE}-headless")
    assert twin["spec"]["clusterIP"] == "None"
    for each in (plain, twin):
        assert each["spec"]["selector"][f"lease.tms.dev/{support.LEASE}"] == "serving"
        assert {port["name"]: port["port"] for port in each["spec"]["ports"]} == {
            "http": 8000,
            "grpc": 8001,
            "metrics": 8002,
        }


@pytest.mark.parametrize(
    "changed",
    [
        {"installation_id": "Capital"},
        {"installation_id": "x" * 49},
        {"namespace": "a_b"},
        {"default_program": "unknown"},
        {"profiles": {}},
        {"margin_bytes": 2**60},
        {"requests_at_once": 0},
        {"profiles": {"default": options_module.Profile(cache=options_module.Cache(host_path="/a", claim="b"))}},
    ],
)
def test_options_that_could_not_work_are_refused_by_name(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changed)).split("_")[0]):
        support.options(**changed)


def test_the_token_of_a_group_is_in_its_secret_and_never_shown() -> None:
    spec = support.spec(token="a-token-of-a-group")
    assert "a-token-of-a-group" not in repr(spec)
    objects_ = manifests.of_group(spec, support.options())
    assert base64.b64decode(objects_.secret["data"]["token"]) == b"a-token-of-a-group"
    assert "a-token-of-a-group" not in repr(objects_.deployment)
