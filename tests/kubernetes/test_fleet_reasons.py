"""What Kubernetes says against a worker reaches the stream that the user of a lease has."""

from __future__ import annotations

import json
import subprocess

import kubernetes
import pytest

from protos.tms.v1 import common_pb2, lease_pb2
from tests.kubernetes import fleet as fleets
from tests.support import system as systems

pytestmark = pytest.mark.slow  # real pods start, load and stop


def on(image: str = "", profile: str = "", gpus: int = 0) -> lease_pb2.DedicatedPlacement:
    spec = common_pb2.WorkerSpec(profile=profile, resources=common_pb2.Resources(gpus=gpus))
    if image:
        spec.image = image
    return lease_pb2.DedicatedPlacement(worker=spec)


def test_an_image_that_cannot_be_pulled(fleet: fleets.Fleet) -> None:
    lease = fleet.ask(dedicated=on(image="nowhere.example/none:1"))
    told = fleet.until_reason(lease.id, "ImagePullFailed")
    assert "nowhere.example/none:1" in told.message


def test_a_pull_that_works_at_last_lets_the_lease_serve(fleet: fleets.Fleet) -> None:
    fleet.faults.fail_pull("tms/worker:later", "toomanyrequests: slow down")
    lease = fleet.ask(dedicated=on(image="tms/worker:later"))
    assert "toomanyrequests" in fleet.until_reason(lease.id, "ImagePullFailed").message
    fleet.faults.mend_pull("tms/worker:later")
    fleet.until_serving(lease.id)


def test_more_devices_than_any_node_has(fleet: fleets.Fleet) -> None:
    lease = fleet.ask(dedicated=on(gpus=12))
    told = fleet.until_reason(lease.id, "Unschedulable")
    assert "Insufficient nvidia.com/gpu" in told.message


def test_a_shape_that_no_node_matches_is_a_warning(fleet: fleets.Fleet) -> None:
    lease = fleet.ask(dedicated=on(profile="nowhere"))
    fleet.until(
        lease.id,
        lambda now: any(
            each.type == "Warning" and each.status and each.reason == "NoSuchNode" and "disk=golden" in each.message
            for each in now.conditions
        ),
    )
    assert fleet.get(lease.id).state != lease_pb2.LEASE_STATE_FAILED


def test_a_full_namespace(fleet: fleets.Fleet) -> None:
    quota = kubernetes.client.V1ResourceQuota(
        metadata=kubernetes.client.V1ObjectMeta(name="full"),
        spec=kubernetes.client.V1ResourceQuotaSpec(hard={"pods": "0"}),
    )
    fleet.core.create_namespaced_resource_quota(fleet.namespace, quota)
    try:
        lease = fleet.ask()
        assert "exceeded quota" in fleet.until_reason(lease.id, "QuotaExceeded").message
    finally:
        fleet.core.delete_namespaced_resource_quota("full", fleet.namespace)
    fleet.until_serving(lease.id)


def test_a_worker_that_ends_again_and_again(fleet: fleets.Fleet) -> None:
    fleet.faults.register_image("tms/ends", ["/bin/sh", "-c", "exit 3"])
    lease = fleet.ask(dedicated=on(image="tms/ends:1"))
    assert "3" in fleet.until_reason(lease.id, "CrashLoop").message


def test_the_command_line_shows_them(fleet: fleets.Fleet) -> None:
    lease = fleet.ask(dedicated=on(gpus=12))
    fleet.until_reason(lease.id, "Unschedulable")
    with subprocess.Popen(
        [str(systems.PROGRAMS / "tmsctl"), "lease", "watch", lease.id, "--output", "json"],
        env={"TMS_TARGET": fleet.target, "PATH": "/usr/bin", "HOME": str(fleet.folder)},
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        watching.terminate()
    assert "Insufficient nvidia.com/gpu" in json.dumps(first)
