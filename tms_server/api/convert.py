"""Leases between the wire and the model, both ways; no protobuf object passes inward.

Defaults of absent fields are filled in here. What a field may hold is checked by the services; here only what the model
cannot even say raises InvalidField, and what this server does not do raises Unimplemented.
"""

from __future__ import annotations

import datetime as dt
from types import MappingProxyType
from typing import Literal

from protos.tms.v1 import common_pb2, lease_pb2
from tms_server.api import convert_scaling, fields
from tms_server.model import errors, ids, lease, source
from tms_server.services import create, leases, names, tunnels, views, watch

STATES = {state: lease_pb2.LeaseState.Value(f"LEASE_STATE_{state}") for state in lease.LeaseState}
STATES_BACK = {number: state for state, number in STATES.items()}
RENEWALS = {
    lease.Renewal.ON_ACTIVITY: lease_pb2.RENEWAL_ON_ACTIVITY,
    lease.Renewal.KEEPALIVE: lease_pb2.RENEWAL_KEEPALIVE,
    lease.Renewal.MANUAL: lease_pb2.RENEWAL_MANUAL,
}
_RENEWALS_BACK = {
    lease_pb2.RENEWAL_UNSPECIFIED: lease.Renewal.ON_ACTIVITY,
    **{number: renewal for renewal, number in RENEWALS.items()},
}
_PORTS = {
    lease_pb2.TUNNEL_PORT_UNSPECIFIED: tunnels.Port.HTTP,
    lease_pb2.TUNNEL_PORT_HTTP: tunnels.Port.HTTP,
    lease_pb2.TUNNEL_PORT_GRPC: tunnels.Port.GRPC,
    lease_pb2.TUNNEL_PORT_METRICS: tunnels.Port.METRICS,
}
_Span = Literal["hold", "activity_window", "max_lifetime", "pending_timeout"]


def create_lease(message: lease_pb2.CreateLeaseRequest, default: lease.Times) -> create.CreateLease:
    """What a caller asks for; `default` holds the times that it leaves out."""
    scales = message.HasField("autoscaling")
    spec = lease.LeaseSpec(
        models=tuple(_reference(f"models[{index}]", each) for index, each in enumerate(message.models)),
        placement=_placement(message),
        times=_times(message.times, default),
        priority=message.priority,
        labels=MappingProxyType(dict(message.labels)),
        sharing=lease.Sharing(
            share_with=tuple(message.sharing.share_with),
            not_with=tuple(message.sharing.not_with),
            exclusive=message.sharing.exclusive,
        ),
        parent_id=ids.LeaseId(message.parent_id) if message.parent_id else None,
        autoscaling=convert_scaling.autoscaling(message.autoscaling) if scales else None,
    )
    return create.CreateLease(
        namespace=fields.namespace(message.namespace),
        spec=spec,
        request_id=message.request_id,
        name=message.name,
        dry_run=message.dry_run,
    )


def list_leases(message: lease_pb2.ListLeasesRequest) -> leases.ListLeases:
    """Filters and place of a page."""
    unknown = [index for index, number in enumerate(message.states) if number not in STATES_BACK]
    if unknown:
        raise errors.InvalidField(f"states[{unknown[0]}]", "give a state of a lease")
    return leases.ListLeases(
        namespace=fields.namespace(message.namespace),
        states=frozenset(STATES_BACK[number] for number in message.states),
        labels=MappingProxyType(dict(message.labels)),
        pool=message.pool,
        page_size=message.page_size,
        page_token=message.page_token,
        living_only=message.living_only,
    )


def lease_message(view: views.LeaseView) -> lease_pb2.Lease:
    """A lease to send."""
    shown = view.lease
    made = lease_pb2.Lease(
        id=shown.id,
        namespace=shown.namespace,
        state=STATES[shown.state],
        models=map(_reference_message, shown.spec.models),
        times=_times_message(shown.spec.times),
        priority=shown.spec.priority,
        labels=dict(shown.spec.labels),
        sharing=_sharing_message(shown.spec.sharing),
        names=view.names,
        parent_id=shown.spec.parent_id or "",
        request_id=shown.request_id,
        generation=shown.generation,
        revision=shown.revision,
        conditions=map(condition, shown.conditions),
        model_statuses=map(fields.model_status, view.models),
        worker_group=view.group_id or "",
        endpoint=fields.endpoint_message(view.endpoint),
        worker_endpoints=filter(None, map(fields.endpoint_message, view.worker_endpoints)),
        created_at=fields.timestamp(shown.created_at),
        active_at=fields.timestamp(shown.active_at),
        last_activity_at=fields.timestamp(shown.last_activity_at),
        expires=deadline(view),
        end=_end(shown.end),
        autoscaling=convert_scaling.autoscaling_message(shown.spec.autoscaling),
        wanted_replicas=view.wanted_replicas,
        ready_replicas=view.ready_replicas,
    )
    if isinstance(shown.spec.placement, lease.InPool):
        made.pool.pool = shown.spec.placement.pool
    else:
        made.dedicated.worker.CopyFrom(fields.worker_message(shown.spec.placement.worker))
        made.dedicated.replicas = shown.spec.placement.replicas
    return made


def deadline(view: views.LeaseView) -> common_pb2.Deadline | None:
    """When the lease ends unless renewed; None while no clock runs."""
    if view.deadline is None:
        return None
    return common_pb2.Deadline(
        remaining=fields.duration(max(dt.timedelta(0), view.deadline - view.now)),
        at=fields.timestamp(view.deadline),
        server_time=fields.timestamp(view.now),
    )


def update(value: watch.Update) -> lease_pb2.LeaseUpdate:
    """A change to send."""
    return lease_pb2.LeaseUpdate(lease=lease_message(value.view), revision=value.revision)


def condition(value: lease.Condition) -> common_pb2.Condition:
    """A condition to send."""
    return common_pb2.Condition(
        type=value.type,
        status=value.status,
        reason=value.reason,
        message=value.message,
        changed_at=fields.timestamp(value.changed_at),
    )


def event(value: lease.LeaseEvent) -> lease_pb2.LeaseEvent:
    """A line of history to send."""
    return lease_pb2.LeaseEvent(
        revision=value.revision,
        at=fields.timestamp(value.at),
        type=value.type,
        message=value.message,
        actor=value.actor,
        state=STATES[value.state],
    )


def explanation(value: leases.Explained) -> lease_pb2.ExplainLeaseResponse:
    """Why a lease is where it is, to send."""
    why = value.why
    return lease_pb2.ExplainLeaseResponse(
        summary=f"{why.summary}; {value.trouble}" if value.trouble else why.summary,
        workers=[
            lease_pb2.WorkerVerdict(
                worker_group=each.group_id,
                fits=each.fits,
                rule=each.rule,
                message=each.message,
                capacity_bytes=each.capacity_bytes,
                free_bytes=each.free_bytes,
                missing_bytes=each.missing_bytes,
                held_by=each.held_by,
            )
            for each in why.workers
        ],
        nearest_fit=why.nearest_fit or "",
        smallest_change=why.smallest_change,
        needed_bytes=why.needed_bytes,
        conditions=map(condition, value.lease.conditions),
    )


def tunnel_port(number: lease_pb2.TunnelPort.ValueType) -> tunnels.Port:
    """Which port a tunnel leads to; none given: HTTP."""
    if number not in _PORTS:
        raise errors.InvalidField("open.port", "give HTTP, GRPC or METRICS")
    return _PORTS[number]


def name(value: names.NameView) -> lease_pb2.LeaseName:
    """A name to send."""
    return lease_pb2.LeaseName(
        name=value.binding.name,
        namespace=value.binding.namespace,
        lease_id=value.binding.lease_id,
        endpoint=fields.endpoint_message(value.endpoint),
        changed_at=fields.timestamp(value.binding.changed_at),
    )


def _reference(path: str, message: common_pb2.ModelReference) -> lease.ModelReference:
    return lease.ModelReference(
        name=message.name,
        uri=message.uri,
        framework=_framework(f"{path}.framework", message.framework),
        declared_bytes=message.declared_bytes,
        config_override=message.config_override,
    )


def _framework(path: str, text: str) -> source.Framework | None:
    try:
        return source.Framework(text) if text else None
    except ValueError:
        known = ", ".join(source.Framework)
        raise errors.InvalidField(path, f"give one of {known}, or leave it empty") from None


def _placement(message: lease_pb2.CreateLeaseRequest) -> lease.Placement:
    if message.WhichOneof("placement") != "dedicated":
        return lease.InPool(ids.PoolName(message.pool.pool or ids.DEFAULT_POOL))
    # Left out, it begins with the least that growth allows.
    least = message.autoscaling.min_replicas or 1
    return lease.Dedicated(fields.worker(message.dedicated.worker), message.dedicated.replicas or least)


def _times(message: lease_pb2.LeaseTimes, default: lease.Times) -> lease.Times:
    if message.renewal not in _RENEWALS_BACK:
        raise errors.InvalidField("times.renewal", "give ON_ACTIVITY, KEEPALIVE or MANUAL")

    def given(name: _Span, otherwise: dt.timedelta) -> dt.timedelta:
        return fields.span(f"times.{name}", getattr(message, name)) if message.HasField(name) else otherwise

    limited = message.HasField("max_lifetime")
    longest = given("max_lifetime", default.hold) if limited else default.max_lifetime
    return lease.Times(
        # What is left out gives way to a limit that is not.
        hold=given("hold", default.hold if longest is None else min(default.hold, longest)),
        activity_window=given("activity_window", default.activity_window),
        max_lifetime=longest,
        pending_timeout=given("pending_timeout", default.pending_timeout),
        renewal=_RENEWALS_BACK[message.renewal],
    )


def _reference_message(value: lease.ModelReference) -> common_pb2.ModelReference:
    return common_pb2.ModelReference(
        name=value.name,
        uri=value.uri,
        framework=value.framework or "",
        declared_bytes=value.declared_bytes,
        config_override=value.config_override,
    )


def _times_message(value: lease.Times) -> lease_pb2.LeaseTimes:
    return lease_pb2.LeaseTimes(
        hold=fields.duration(value.hold),
        activity_window=fields.duration(value.activity_window),
        max_lifetime=fields.duration(value.max_lifetime) if value.max_lifetime is not None else None,
        pending_timeout=fields.duration(value.pending_timeout),
        renewal=RENEWALS[value.renewal],
    )


def _sharing_message(value: lease.Sharing) -> lease_pb2.Sharing:
    return lease_pb2.Sharing(share_with=value.share_with, not_with=value.not_with, exclusive=value.exclusive)


def _end(value: lease.LeaseEnd | None) -> lease_pb2.LeaseEnd | None:
    if value is None:
        return None
    return lease_pb2.LeaseEnd(
        reason=value.reason, message=value.message, actor=value.actor, at=fields.timestamp(value.at)
    )
