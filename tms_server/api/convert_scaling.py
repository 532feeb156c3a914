"""Growth of a lease between the wire and the model, both ways. Defaults of absent fields are filled in here."""

from __future__ import annotations

import datetime as dt

from google.protobuf import duration_pb2

from protos.tms.v1 import lease_pb2
from tms_server.api import fields
from tms_server.model import errors, lease

KINDS = {kind: lease_pb2.ScalingMetricKind.Value(f"SCALING_METRIC_KIND_{kind.name}") for kind in lease.MetricKind}
_KINDS_BACK = {number: kind for kind, number in KINDS.items()}
DEFAULT_METRIC = lease.ScalingMetric(kind=lease.MetricKind.IN_FLIGHT, target_milli=4000)
DEFAULT_QUANTILE_PERMILLE = 950


def autoscaling(message: lease_pb2.Autoscaling) -> lease.Autoscaling:
    """As asked for; a metric that does not exist is refused by its field."""
    metrics = tuple(_metric(f"autoscaling.metrics[{index}]", each) for index, each in enumerate(message.metrics))
    return lease.Autoscaling(
        min_replicas=message.min_replicas or 1,
        max_replicas=message.max_replicas,
        metrics=metrics or (DEFAULT_METRIC,),
        behavior=_behavior(message.behavior),
    )


def autoscaling_message(value: lease.Autoscaling | None) -> lease_pb2.Autoscaling | None:
    """To send; None stays absent."""
    if value is None:
        return None
    behavior = value.behavior
    return lease_pb2.Autoscaling(
        min_replicas=value.min_replicas,
        max_replicas=value.max_replicas,
        metrics=[
            lease_pb2.ScalingMetric(
                kind=KINDS[each.kind], target_milli=each.target_milli, quantile_permille=each.quantile_permille
            )
            for each in value.metrics
        ],
        behavior=lease_pb2.ScalingBehavior(
            scale_up_window=_span_message(behavior.scale_up_window),
            scale_down_window=_span_message(behavior.scale_down_window),
            max_step_up=behavior.max_step_up,
            max_step_down=behavior.max_step_down,
            period=fields.duration(behavior.period),
        ),
    )


def _metric(path: str, message: lease_pb2.ScalingMetric) -> lease.ScalingMetric:
    if message.kind not in _KINDS_BACK:
        raise errors.InvalidField(f"{path}.kind", f"give one of {', '.join(kind.name for kind in lease.MetricKind)}")
    kind = _KINDS_BACK[message.kind]
    default = DEFAULT_QUANTILE_PERMILLE if kind is lease.MetricKind.LATENCY else 0
    return lease.ScalingMetric(
        kind=kind, target_milli=message.target_milli, quantile_permille=message.quantile_permille or default
    )


def _behavior(message: lease_pb2.ScalingBehavior) -> lease.ScalingBehavior:
    default = lease.ScalingBehavior()
    return lease.ScalingBehavior(
        scale_up_window=_span("scale_up_window", message.scale_up_window, message),
        scale_down_window=_span("scale_down_window", message.scale_down_window, message),
        max_step_up=message.max_step_up,
        max_step_down=message.max_step_down,
        period=_span("period", message.period, message) or default.period,
    )


def _span(name: str, value: duration_pb2.Duration, message: lease_pb2.ScalingBehavior) -> dt.timedelta | None:
    given = {descriptor.name for descriptor, _ in message.ListFields()}
    return fields.span(f"autoscaling.behavior.{name}", value) if name in given else None


def _span_message(value: dt.timedelta | None) -> duration_pb2.Duration | None:
    return None if value is None else fields.duration(value)
