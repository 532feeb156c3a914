"""Builds the report that the server decides by: pure, from what is held and what was read.

Decides how phases appear on the wire. A model that is being drained is listed as DRAINING until it is really gone, so
that the server can trust a model's absence; a gone one is listed once as UNLOADED. A name that still holds other bytes
than the wanted ones is listed as what it holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from protos.tms.v1 import agent_pb2, common_pb2
from sidecar import activity, usage, values, wedge, wire
from sidecar import desired as desired_state
from sidecar.fetching import progress

_STATES = {
    desired_state.Phase.FETCHING: common_pb2.MODEL_STATE_FETCHING,
    desired_state.Phase.FETCHED: common_pb2.MODEL_STATE_FETCHING,
    desired_state.Phase.LOADING: common_pb2.MODEL_STATE_LOADING,
    desired_state.Phase.READY: common_pb2.MODEL_STATE_READY,
    desired_state.Phase.DRAINING: common_pb2.MODEL_STATE_DRAINING,
    desired_state.Phase.WAITING: common_pb2.MODEL_STATE_FAILED,
    desired_state.Phase.FAILED: common_pb2.MODEL_STATE_FAILED,
}


SERVER_DOWN = desired_state.Failure("ServerDown", "the worker's server does not answer", retryable=True)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that a report tells, read at `at_ms` (before the counters were asked)."""

    desired: values.Desired
    held: Mapping[str, desired_state.Held]
    gone: Mapping[str, values.ModelKey]
    at_ms: int
    server_ready: bool
    server_restarts: int
    activities: Mapping[str, activity.Activity]
    activity_known: bool
    forwarded: Mapping[str, int]
    reading: usage.Reading
    trouble: wedge.Trouble | None
    fetches: Mapping[str, progress.Seen]
    endpoints: tuple[values.Endpoint, ...]
    unopened: Mapping[values.Endpoint, str]
    worker: values.Endpoint
    cache_bytes: int
    server_down: desired_state.Failure = SERVER_DOWN


def build(seen: Seen) -> agent_pb2.Report:
    """The whole report."""
    statistics = seen.reading.statistics
    return agent_pb2.Report(
        epoch=seen.desired.epoch,
        generation=seen.desired.generation,
        server_ready=seen.server_ready,
        models=[*_wanted(seen), *_leaving(seen)],
        endpoints=[wire.endpoint(each) for each in seen.endpoints],
        memory=agent_pb2.Memory(used_bytes=statistics.memory_bytes if statistics else 0, cache_bytes=seen.cache_bytes),
        server_restarts=seen.server_restarts,
        at=wire.timestamp(seen.at_ms),
        activity_known=seen.activity_known,
        worker_endpoint=wire.endpoint(seen.worker),
        unopened=[_unopened(endpoint, why) for endpoint, why in seen.unopened.items()],
        worker_trouble=f"{seen.trouble.reason}: {seen.trouble.message}" if seen.trouble else "",
        in_flight_known=seen.reading.page.in_flight_known,
        gpu_utilization_permille=seen.reading.page.gpu_utilization_permille,
    )


def _unopened(endpoint: values.Endpoint, why: str) -> agent_pb2.UnopenedEndpoint:
    return agent_pb2.UnopenedEndpoint(endpoint=wire.endpoint(endpoint), reason="AddressUnavailable", message=why)


def _wanted(seen: Seen) -> Iterator[agent_pb2.ReportedModel]:
    for model in seen.desired.models:
        held = seen.held.get(model.name)
        if held is None:
            pending = _named(model.key, common_pb2.MODEL_STATE_PENDING)
            pending.total_bytes = model.size_bytes
            yield pending
        else:
            yield _held(seen, model.name, held, model.size_bytes)


def _leaving(seen: Seen) -> Iterator[agent_pb2.ReportedModel]:
    wanted = {model.name for model in seen.desired.models}
    for name, held in seen.held.items():
        if name not in wanted:
            yield _held(seen, name, held, 0)
    for name, key in seen.gone.items():
        if name not in wanted and name not in seen.held:
            yield _named(key, common_pb2.MODEL_STATE_UNLOADED)


def _named(key: values.ModelKey, state: common_pb2.ModelState.ValueType) -> agent_pb2.ReportedModel:
    return agent_pb2.ReportedModel(
        name=key.name, source_digest=key.source_digest, config_digest=key.config_digest, state=state
    )


def _held(seen: Seen, name: str, held: desired_state.Held, total_bytes: int) -> agent_pb2.ReportedModel:
    reported = _named(held.key, _STATES[held.phase])
    if held.phase is desired_state.Phase.READY and not seen.server_ready:
        reported.state = common_pb2.MODEL_STATE_PENDING
        reported.reason, reported.message = seen.server_down.reason, seen.server_down.message
    if held.failure:
        reported.reason, reported.message = held.failure.reason, held.failure.message
        reported.retryable = held.failure.retryable
    fetch = seen.fetches.get(name, progress.Seen(0, total_bytes, 0))
    reported.fetched_bytes = total_bytes if held.phase not in _UNFETCHED else fetch.fetched_bytes
    reported.total_bytes, reported.fetch_bytes_per_s = total_bytes, fetch.bytes_per_s
    reported.files.extend(wire.source_file(each) for each in held.learnt)
    reported.bytes_before_load = held.memory.before_bytes
    reported.bytes_peak_load = held.memory.peak_bytes
    reported.bytes_after_load = held.memory.after_bytes
    # Both may miss some: the one what is queued in the worker's sockets, the other what goes past the endpoints.
    reported.in_flight = max(seen.forwarded.get(name, 0), seen.reading.page.in_flight.get(name, 0))
    for upper_us, count in seen.reading.page.latency.get(name, ()):
        reported.latency.add(upper_us=upper_us, count=count)
    _add_activity(reported, seen.activities.get(name))
    return reported


_UNFETCHED = {desired_state.Phase.FETCHING, desired_state.Phase.WAITING, desired_state.Phase.FAILED}


def _add_activity(reported: agent_pb2.ReportedModel, used: activity.Activity | None) -> None:
    if used is None:
        return
    reported.inference_count = used.counters.inference_count
    reported.failure_count = used.counters.failure_count
    reported.request_count = used.counters.request_count - used.counters.failure_count
    reported.queue_ns, reported.compute_ns = used.counters.queue_ns, used.counters.compute_ns
    if used.last_inference_ms:
        reported.last_inference.CopyFrom(wire.timestamp(used.last_inference_ms))
