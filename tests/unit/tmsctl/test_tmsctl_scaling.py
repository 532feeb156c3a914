"""How growth is written: what is read comes back the same, what cannot be meant is refused with what to write instead."""

from __future__ import annotations

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.tms.v1 import lease_pb2
from tmsctl import errors, leasefile, leaseoptions, requests, scaling

GROWS = "models: [{name: a, uri: 'model://r/a'}]\ndedicated: {image: w}\nautoscaling:\n  max_replicas: 3\n"


@pytest.mark.parametrize(
    ("text", "kind", "milli", "quantile"),
    [
        ("in_flight=4", lease_pb2.SCALING_METRIC_KIND_IN_FLIGHT, 4000, 0),
        ("request_rate=0.5", lease_pb2.SCALING_METRIC_KIND_REQUEST_RATE, 500, 0),
        ("queue_time=20ms", lease_pb2.SCALING_METRIC_KIND_QUEUE_TIME, 20_000, 0),
        ("queue_ratio=1.25", lease_pb2.SCALING_METRIC_KIND_QUEUE_RATIO, 1250, 0),
        ("latency=2s@p99", lease_pb2.SCALING_METRIC_KIND_LATENCY, 2_000_000, 990),
        ("gpu_utilization=80%", lease_pb2.SCALING_METRIC_KIND_GPU_UTILIZATION, 800, 0),
        ("gpu_utilization=0.8", lease_pb2.SCALING_METRIC_KIND_GPU_UTILIZATION, 800, 0),
        ("model_memory=1GiB", lease_pb2.SCALING_METRIC_KIND_MODEL_MEMORY, 2**30 * 1000, 0),
    ],
)
def test_each_kind_has_targets_of_its_own_unit(
    text: str, kind: lease_pb2.ScalingMetricKind.ValueType, milli: int, quantile: int
) -> None:
    assert scaling.parse_metric(text) == lease_pb2.ScalingMetric(
        kind=kind, target_milli=milli, quantile_permille=quantile
    )


@given(st.sampled_from(sorted(scaling.KINDS)), st.integers(1, 1000), st.sampled_from(["", *scaling.QUANTILES]))
def test_what_is_shown_can_be_read(kind: str, target: int, quantile: str) -> None:
    milli = target * 1000 if kind == "model_memory" else target
    permille = scaling.QUANTILES.get(quantile, 0) if kind == "latency" else 0
    one = lease_pb2.ScalingMetric(kind=scaling.KINDS[kind], target_milli=milli, quantile_permille=permille)
    assert scaling.parse_metric(scaling.format_metric(one)) == one


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("in_flight", "KIND=TARGET"),
        ("inflight=4", "in_flight"),
        ("in_flight=0", "more than 0"),
        ("in_flight=many", "a number"),
        ("in_flight=4@p95", "no quantile"),
        ("latency=200ms@p97", "p9"),
        ("latency=200", "duration"),
        ("gpu_utilization=180%", "more than the whole"),
        ("model_memory=lots", "size"),
    ],
)
def test_what_cannot_be_meant_says_what_to_write(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scaling.parse_metric(text)


def test_the_file_and_the_options_say_the_same() -> None:
    text = GROWS + (
        "  min_replicas: 1\n  metrics: [{kind: in_flight, target: 4}, {kind: latency, target: 200ms, quantile: p95}]\n"
        "  behavior: {down_window: 5m, max_step_up: 2, period: 15s}\n"
    )
    read = leasefile.parse(text, pathlib.Path()).autoscaling
    given_ = leaseoptions.LeaseOptions(
        model=["a=model://r/a"],
        dedicated=True,
        min_replicas=1,
        max_replicas=3,
        scale_on=["in_flight=4", "latency=200ms@p95"],
    )
    built = requests.build(given_, leaseoptions.WorkerOptions(image="w", profile="gpu"), None)
    assert list(built.autoscaling.metrics) == list(read.metrics)
    assert (built.autoscaling.min_replicas, built.autoscaling.max_replicas) == (1, 3)
    assert built.dedicated.worker.profile == "gpu"
    assert (read.behavior.scale_down_window.seconds, read.behavior.max_step_up, read.behavior.period.seconds) == (
        300,
        2,
        15,
    )


@pytest.mark.parametrize("said", ["metrics: [{kind: in_flight}]", "metrics: [{kind: x, target: 1}]", "metric: []"])
def test_the_file_names_the_wrong_key(said: str) -> None:
    with pytest.raises(errors.CliError) as raised:
        leasefile.parse(GROWS + f"  {said}\n", pathlib.Path())
    assert raised.value.field.startswith("autoscaling.metric")


def test_growth_needs_a_greatest_size() -> None:
    with pytest.raises(errors.CliError) as raised:
        requests.build(
            leaseoptions.LeaseOptions(model=["a=model://r/a"], min_replicas=2), leaseoptions.WorkerOptions(), None
        )
    assert raised.value.field == "--max-replicas"


def test_no_replica_at_all_is_no_greatest_size() -> None:
    asked = leaseoptions.LeaseOptions(model=["a=model://r/a"], dedicated=True, max_replicas=0)
    with pytest.raises(errors.CliError, match="0 is no size") as raised:
        requests.build(asked, leaseoptions.WorkerOptions(), None)
    assert raised.value.field == "--max-replicas"
