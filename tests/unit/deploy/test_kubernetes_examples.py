"""The examples are what they say: values that the chart takes, objects that Kubernetes takes, scripts that are scripts."""

from __future__ import annotations

import pathlib
import subprocess
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # theirs
import pytest
import yaml

from deploy.images import locks
from tests.support import commands
from tests.unit.deploy import charts
from tmsctl import config, leasefile

EXAMPLES = locks.ROOT / "examples" / "kubernetes"
VALUES = sorted([*EXAMPLES.glob("values*.yaml"), EXAMPLES / "kind" / "values.yaml"])
FOREIGN = ("ServiceMonitor", "PodMonitor", "PrometheusRule")


def _yaml(file: pathlib.Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


@pytest.mark.parametrize("file", VALUES, ids=lambda file: str(file.relative_to(EXAMPLES)))
def test_the_chart_takes_every_file_of_values(file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (values,) = _yaml(file)
    objects = charts.render(values)
    for each in objects:
        if each["kind"] not in FOREIGN:
            kubernetes_validate.validate(each, "1.36.0", strict=True)
    assert charts.told(objects, tmp_path).backend == "kubernetes"


def test_every_file_of_yaml_is_looked_at() -> None:
    known = {*VALUES, EXAMPLES / "kind" / "cluster.yaml", EXAMPLES / "ci" / "job.yaml", EXAMPLES / "lease.yaml"}
    assert set(EXAMPLES.rglob("*.yaml")) == known


def test_the_job_is_what_kubernetes_takes_under_the_restricted_standard() -> None:
    job, target = _yaml(EXAMPLES / "ci" / "job.yaml")
    for each in (job, target):
        kubernetes_validate.validate(each, "1.36.0", strict=True)
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {each["name"] for each in pod["containers"][0]["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    targets = config.parse(target["data"]["targets.toml"])
    assert targets.by_name[targets.used].address == "tms.tms.svc:30345"
    assert targets.by_name[targets.used].ca.startswith("/ca/")


def test_the_job_calls_tmsctl_as_it_is_called() -> None:
    job, _ = _yaml(EXAMPLES / "ci" / "job.yaml")
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["tmsctl", "run"]
    own = container["args"][: container["args"].index("--")]
    assert {each.partition("=")[0] for each in own} <= commands.options(["run"])


def test_kinds_node_leads_to_the_port_and_the_folder_that_the_values_name() -> None:
    (cluster,), (values,) = _yaml(EXAMPLES / "kind" / "cluster.yaml"), _yaml(EXAMPLES / "kind" / "values.yaml")
    control_plane, *workers = cluster["nodes"]
    assert control_plane["extraPortMappings"][0]["containerPort"] == values["service"]["nodePort"]
    assert len(workers) > 1, "a lease can be moved off a cordoned node"
    assert {worker["role"] for worker in workers} == {"worker"}
    for worker in workers:
        assert worker["extraMounts"][0]["containerPath"] == values["repositories"]["models"]["host_path"]


@pytest.mark.parametrize("file", VALUES, ids=lambda file: str(file.relative_to(EXAMPLES)))
def test_no_example_asks_a_public_registry_for_what_is_not_there(file: pathlib.Path) -> None:
    (values,) = _yaml(file)
    assert values["images"].get("registry") or values["images"]["pullPolicy"] == "Never"
    for program in values.get("programs", {}).values():
        assert "." in program["image"].partition("/")[0]


def test_the_lease_is_one_that_tmsctl_takes() -> None:
    request = leasefile.parse((EXAMPLES / "lease.yaml").read_text(), EXAMPLES)
    assert request.autoscaling.max_replicas > 1


def test_the_script_is_a_script() -> None:
    subprocess.run(["bash", "-n", str(EXAMPLES / "ci" / "acquire-release.sh")], check=True)
    assert (EXAMPLES / "ci" / "acquire-release.sh").stat().st_mode & 0o111
