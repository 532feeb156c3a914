"""What may be asked for."""

from __future__ import annotations

import dataclasses
import datetime as dt

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.unit.core import builders as b
from tms_server.leases import validate
from tms_server.model import errors, ids, lease, resources

GOOD = b.L("a", (b.M("m", 10), b.M("n"))).spec()
MODEL = GOOD.models[0]


def models(**changes: object) -> lease.LeaseSpec:
    changed = dataclasses.replace(MODEL, **changes)  # type: ignore[arg-type]  # the tests name the fields
    return dataclasses.replace(GOOD, models=(changed,))


def times(**changes: object) -> lease.LeaseSpec:
    changed = dataclasses.replace(lease.Times(), **changes)  # type: ignore[arg-type]  # the tests name the fields
    return dataclasses.replace(GOOD, times=changed)


def sharing(**changes: object) -> lease.LeaseSpec:
    changed = dataclasses.replace(lease.Sharing(), **changes)  # type: ignore[arg-type]  # the tests name the fields
    return dataclasses.replace(GOOD, sharing=changed)


def own(**changes: object) -> lease.LeaseSpec:
    return dataclasses.replace(GOOD, placement=lease.Dedicated(resources.WorkerSpec(**changes)))  # type: ignore[arg-type]  # the tests name the fields


def test_a_good_spec_passes() -> None:
    validate.lease_spec(GOOD)
    validate.lease_spec(own(command="tms-worker"))
    validate.lease_spec(own(image="registry.example/triton:24"))
    validate.lease_spec(sharing(share_with=("tier=web", "blue"), not_with=("tier=batch",)))
    validate.lease_spec(models(config_override='{"max_batch_size": 8}'))
    validate.lease_spec(times(max_lifetime=b.s(600)))
    for uri in ("model://zoo/a/b", "file:///srv/models/a", "s3://bucket", "s3://bucket/a/b..c"):
        validate.lease_spec(models(uri=uri))


@pytest.mark.parametrize(
    ("path", "spec"),
    [
        ("models", dataclasses.replace(GOOD, models=())),
        ("models", dataclasses.replace(GOOD, models=(MODEL,) * 65)),
        ("models[1].name", dataclasses.replace(GOOD, models=(MODEL, MODEL))),
        ("models[0].name", models(name="")),
        ("models[0].name", models(name="../m")),
        ("models[0].name", models(name=".hidden")),
        ("models[0].name", models(name="m" * 129)),
        ("models[0].name", models(name="m\n")),
        ("models[0].uri", models(uri="")),
        ("models[0].uri", models(uri="/srv/models")),
        ("models[0].uri", models(uri="ftp://host/a")),
        ("models[0].uri", models(uri="FILE:///a")),
        ("models[0].uri", models(uri="file://host/a")),
        ("models[0].uri", models(uri="file:///")),
        ("models[0].uri", models(uri="model://zoo")),
        ("models[0].uri", models(uri="model:///a")),
        ("models[0].uri", models(uri="s3:///key")),
        ("models[0].uri", models(uri="model://zoo/../secret")),
        ("models[0].uri", models(uri="file:///srv/..")),
        ("models[0].uri", models(uri="model://zoo/a\\..\\b")),
        ("models[0].uri", models(uri="model://zoo/a\0b")),
        ("models[0].uri", models(uri="model://zoo/" + "a" * 3000)),
        ("models[0].declared_bytes", models(declared_bytes=-1)),
        ("models[0].declared_bytes", models(declared_bytes=1 << 62)),
        ("models[0].config_override", models(config_override="{")),
        ("models[0].config_override", models(config_override="[]")),
        ("models[0].config_override", models(config_override="[" * 60_000)),
        ("models[0].config_override", models(config_override='{"a": "' + "x" * 70_000 + '"}')),
        ("times.hold", times(hold=b.s(0))),
        ("times.hold", times(hold=b.s(1e9))),
        ("times.activity_window", times(activity_window=b.s(0.5))),
        ("times.pending_timeout", times(pending_timeout=b.s(-1))),
        ("times.max_lifetime", times(max_lifetime=b.s(599))),
        ("priority", dataclasses.replace(GOOD, priority=1001)),
        ("priority", dataclasses.replace(GOOD, priority=-1001)),
        ("labels", dataclasses.replace(GOOD, labels={str(n): "v" for n in range(65)})),
        ("labels key", dataclasses.replace(GOOD, labels={"": "v"})),
        ("labels[a=b]", dataclasses.replace(GOOD, labels={"a=b": "v"})),
        ("labels[k]", dataclasses.replace(GOOD, labels={"k": "v" * 129})),
        ("sharing.share_with[0]", sharing(share_with=("",))),
        ("sharing.not_with[0]", sharing(not_with=("=v",))),
        ("sharing.not_with", sharing(not_with=("x",) * 33)),
        ("sharing.not_with", sharing(not_with=("x",), share_with=("x",))),
        ("sharing.exclusive", sharing(exclusive=True, share_with=("x",))),
        (
            "sharing.share_with",
            dataclasses.replace(own(command="x"), sharing=lease.Sharing(share_with=("tier=web",))),
        ),
        ("pool.pool", dataclasses.replace(GOOD, placement=lease.InPool(ids.PoolName("Gold")))),
        ("dedicated.worker.image", own(image="a", command="b")),
        ("dedicated.worker.command", own(command="/bin/sh")),
        ("dedicated.worker.command", own(command="sh -c x")),
        ("dedicated.worker.resources.gpus", own(command="x", resources=resources.Resources(gpus=-1))),
        ("dedicated.worker.resources.memory_bytes", own(command="x", resources=resources.Resources(memory_bytes=-1))),
    ],
)
def test_a_wrong_field_is_named(path: str, spec: lease.LeaseSpec) -> None:
    with pytest.raises(errors.InvalidField) as caught:
        validate.lease_spec(spec)
    assert caught.value.path == path
    assert caught.value.remedy


@pytest.mark.parametrize("uri", ["azure://host/m", "hf://owner/m"])
def test_schemes_of_later_versions_are_refused_as_such(uri: str) -> None:
    with pytest.raises(errors.Unimplemented, match=r"models\[0\].uri"):
        validate.lease_spec(models(uri=uri))


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("spec.max_workers", {"max_workers": 0}),
        ("spec.max_workers", {"max_workers": 10_001}),
        ("spec.min_workers", {"min_workers": -1}),
        ("spec.min_workers", {"min_workers": 5, "max_workers": 4}),
        ("spec.idle_worker_linger", {"idle_worker_linger": b.s(-1)}),
        ("spec.worker.image", {"worker": resources.WorkerSpec(image="a", command="b")}),
    ],
)
def test_a_wrong_field_of_a_pool_is_named(path: str, changes: dict[str, object]) -> None:
    spec = b.a_pool().spec
    validate.pool_spec(spec)
    with pytest.raises(errors.InvalidField) as caught:
        validate.pool_spec(dataclasses.replace(spec, **changes))  # type: ignore[arg-type]  # the tests name the fields
    assert caught.value.path == path


@pytest.mark.parametrize("bad", ["", "A", "1a", "-a", "a_b", "a" * 64, "a\n", "ä"])
def test_names(bad: str) -> None:
    validate.name("name", "a")
    validate.name("name", "blue-7")
    with pytest.raises(errors.InvalidField):
        validate.name("name", bad)


@pytest.mark.parametrize("bad", ["", "x" * 129, "a\nb"])
def test_request_ids(bad: str) -> None:
    validate.request_id("request_id", "CI run 7/é")
    with pytest.raises(errors.InvalidField):
        validate.request_id("request_id", bad)


@hypothesis.given(st.text(), st.text(), st.text())
def test_no_text_breaks_the_validation(name: str, uri: str, override: str) -> None:
    try:
        validate.lease_spec(models(name=name, uri=uri, config_override=override))
    except (errors.InvalidField, errors.Unimplemented):
        return
    assert not {"..", "\\"} & set(uri.split("/"))


GROWTH = lease.Autoscaling(
    min_replicas=1, max_replicas=2, metrics=(lease.ScalingMetric(kind=lease.MetricKind.IN_FLIGHT, target_milli=1),)
)


def metric(kind: lease.MetricKind, target: int = 1, quantile: int = 0) -> lease.Autoscaling:
    made = lease.ScalingMetric(kind=kind, target_milli=target, quantile_permille=quantile)
    return dataclasses.replace(GROWTH, metrics=(made,))


def paced(**fields: object) -> lease.Autoscaling:
    return dataclasses.replace(GROWTH, behavior=lease.ScalingBehavior(**fields))  # type: ignore[arg-type]  # named


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        (dataclasses.replace(GROWTH, min_replicas=0), "autoscaling.min_replicas"),
        (dataclasses.replace(GROWTH, min_replicas=3), "autoscaling.max_replicas"),
        (dataclasses.replace(GROWTH, max_replicas=1001), "autoscaling.max_replicas"),
        (dataclasses.replace(GROWTH, min_replicas=2), "dedicated.replicas"),
        (dataclasses.replace(GROWTH, metrics=GROWTH.metrics * 17), "autoscaling.metrics"),
        (metric(lease.MetricKind.IN_FLIGHT, target=0), "autoscaling.metrics[0].target_milli"),
        (metric(lease.MetricKind.LATENCY, quantile=123), "autoscaling.metrics[0].quantile_permille"),
        (metric(lease.MetricKind.IN_FLIGHT, quantile=950), "autoscaling.metrics[0].quantile_permille"),
        (paced(scale_up_window=dt.timedelta(seconds=3601)), "autoscaling.behavior.scale_up_window"),
        (paced(scale_down_window=dt.timedelta(seconds=-1)), "autoscaling.behavior.scale_down_window"),
        (paced(max_step_up=-1), "autoscaling.behavior.max_step_up"),
        (paced(period=dt.timedelta(0)), "autoscaling.behavior.period"),
    ],
)
def test_growth_that_means_nothing_is_refused_by_its_field(asked: lease.Autoscaling, path: str) -> None:
    spec = dataclasses.replace(b.L("a", own=b.worker()).spec(), autoscaling=asked)
    with pytest.raises(errors.InvalidField) as refused:
        validate.lease_spec(spec)
    assert refused.value.path == path


def test_growth_within_its_limits_is_taken() -> None:
    for asked in (GROWTH, metric(lease.MetricKind.LATENCY, quantile=990), paced(scale_up_window=dt.timedelta(0))):
        validate.lease_spec(dataclasses.replace(b.L("a", own=b.worker()).spec(), autoscaling=asked))
        validate.lease_spec(dataclasses.replace(b.L("a").spec(), autoscaling=asked))
