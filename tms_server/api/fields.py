"""Single fields between the wire and the model: times, spans, worker specs, endpoints. Raises InvalidField at their path."""

from __future__ import annotations

import datetime as dt

from google.protobuf import duration_pb2, timestamp_pb2

from protos.tms.v1 import common_pb2
from tms_server.model import errors, group, ids, resources
from tms_server.services import views

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MODEL_STATES = {state: common_pb2.ModelState.Value(f"MODEL_STATE_{state}") for state in group.ModelState}
MODEL_STATES_BACK = {number: state for state, number in MODEL_STATES.items()}


def namespace(text: str) -> ids.Namespace:
    """Empty means the default one."""
    return ids.Namespace(text) if text else ids.DEFAULT_NAMESPACE


def span(path: str, message: duration_pb2.Duration) -> dt.timedelta:
    """A span as sent."""
    try:
        return dt.timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
    except OverflowError:
        raise errors.InvalidField(path, "give a span of at most ten years") from None


def instant(path: str, message: timestamp_pb2.Timestamp) -> dt.datetime:
    """An instant as sent."""
    try:
        return _EPOCH + dt.timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
    except OverflowError:
        raise errors.InvalidField(path, "give an instant between the years 1 and 9999") from None


def duration(value: dt.timedelta) -> duration_pb2.Duration:
    """A span to send."""
    made = duration_pb2.Duration()
    made.FromTimedelta(value)
    return made


def timestamp(value: dt.datetime | None) -> timestamp_pb2.Timestamp | None:
    """An instant to send; None stays absent."""
    if value is None:
        return None
    made = timestamp_pb2.Timestamp()
    made.FromDatetime(value)
    return made


def worker(message: common_pb2.WorkerSpec) -> resources.WorkerSpec:
    """What a worker is, as asked for."""
    asked = message.resources
    return resources.WorkerSpec(
        command=message.command,
        image=message.image,
        resources=resources.Resources(gpus=asked.gpus, cpu_milli=asked.cpu_milli, memory_bytes=asked.memory_bytes),
        profile=message.profile,
    )


def worker_message(value: resources.WorkerSpec) -> common_pb2.WorkerSpec:
    """What a worker is, to send."""
    reserved = common_pb2.Resources(
        gpus=value.resources.gpus,
        cpu_milli=value.resources.cpu_milli,
        memory_bytes=value.resources.memory_bytes,
    )
    made = common_pb2.WorkerSpec(resources=reserved, profile=value.profile)
    if value.image:
        made.image = value.image
    elif value.command:
        made.command = value.command
    return made


def endpoint(message: common_pb2.Endpoint) -> resources.Endpoint:
    """An address as sent."""
    return resources.Endpoint(message.host, message.http_port, message.grpc_port, message.metrics_port)


def endpoint_message(value: resources.Endpoint | None) -> common_pb2.Endpoint | None:
    """An address to send; None stays absent."""
    if value is None:
        return None
    return common_pb2.Endpoint(
        host=value.host, http_port=value.http_port, grpc_port=value.grpc_port, metrics_port=value.metrics_port
    )


def model_status(view: views.ModelView) -> common_pb2.ModelStatus:
    """State of one model to send."""
    return common_pb2.ModelStatus(
        name=view.name,
        state=MODEL_STATES[view.state],
        reason=view.reason,
        message=view.message,
        fetched_bytes=view.fetched_bytes,
        total_bytes=view.total_bytes,
        fetch_bytes_per_s=view.fetch_bytes_per_s,
        fetch_remaining=duration(remaining) if (remaining := view.fetch_remaining) is not None else None,
        framework=view.framework,
        booked_bytes=view.booked_bytes,
        source_digest=view.source_digest,
        last_inference=timestamp(view.last_inference),
        inference_count=view.inference_count,
    )
