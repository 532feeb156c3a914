"""Between values and rows, both ways, without loss. The only module that knows both; it must never touch a connection."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from tms_server.model import group, ids, image, lease, pool, resources, source
from tms_server.ports import store
from tms_server.store import documents

Row = Mapping[Any, Any]

_SOURCES = tuple[source.ModelSource, ...]
_CONDITIONS = tuple[lease.Condition, ...]


def optional_us(time: dt.datetime | None) -> int | None:
    return None if time is None else documents.to_us(time)


def _optional_time(time_us: int | None) -> dt.datetime | None:
    return None if time_us is None else documents.from_us(time_us)


def installation_columns(value: store.Installation) -> dict[str, Any]:
    return {"id": value.id, "epoch": value.epoch, "alive_at": documents.to_us(value.alive_at)}


def installation(row: Row) -> store.Installation:
    return store.Installation(
        id=ids.InstallationId(row["id"]), epoch=row["epoch"], alive_at=documents.from_us(row["alive_at"])
    )


def lease_columns(value: lease.Lease, body_digest: str) -> dict[str, Any]:
    """The whole row of a new lease."""
    placement = value.spec.placement
    return {
        "id": value.id,
        "namespace": value.namespace,
        "actor": value.actor,
        "request_id": value.request_id,
        "body_digest": body_digest,
        "pool": placement.pool if isinstance(placement, lease.InPool) else None,
        "parent_id": value.spec.parent_id,
        "created_at": documents.to_us(value.created_at),
        "spec": documents.dump(lease.LeaseSpec, value.spec),
        "renewed_until": optional_us(value.renewed_until),
        "last_activity_at": optional_us(value.last_activity_at),
        **lease_changes(value),
    }


def lease_changes(value: lease.Lease) -> dict[str, Any]:
    """The columns that change in a lease's life, but the times of renewal, which have guards of their own."""
    end = value.end
    return {
        "state": value.state.value,
        "generation": value.generation,
        "revision": value.revision,
        "active_at": optional_us(value.active_at),
        "credit_us": documents.span_to_us(value.credit),
        "wanted_copies": value.wanted_copies,
        "end_state": end.state.value if end else None,
        "end_reason": end.reason if end else None,
        "end_message": end.message if end else None,
        "end_actor": end.actor if end else None,
        "end_at": documents.to_us(end.at) if end else None,
        "sources": documents.dump(_SOURCES, value.sources),
        "conditions": documents.dump(_CONDITIONS, value.conditions),
    }


def label_rows(value: lease.Lease) -> list[dict[str, str]]:
    return [{"lease_id": value.id, "key": key, "value": label} for key, label in value.spec.labels.items()]


def lease_value(row: Row) -> lease.Lease:
    return lease.Lease(
        id=ids.LeaseId(row["id"]),
        namespace=ids.Namespace(row["namespace"]),
        spec=documents.load(lease.LeaseSpec, row["spec"]),
        request_id=row["request_id"],
        actor=row["actor"],
        state=documents.member(lease.LeaseState, row["state"]),
        created_at=documents.from_us(row["created_at"]),
        generation=row["generation"],
        revision=row["revision"],
        sources=documents.load(_SOURCES, row["sources"]),
        conditions=documents.load(_CONDITIONS, row["conditions"]),
        active_at=_optional_time(row["active_at"]),
        **renewal_times(row),
        credit=documents.span_from_us(row["credit_us"]),
        end=_lease_end(row),
        wanted_copies=row["wanted_copies"],
    )


def renewal_times(row: Row) -> dict[str, Any]:
    """The fields that renewals move."""
    return {
        "renewed_until": _optional_time(row["renewed_until"]),
        "last_activity_at": _optional_time(row["last_activity_at"]),
    }


def _lease_end(row: Row) -> lease.LeaseEnd | None:
    if row["end_at"] is None:
        return None
    return lease.LeaseEnd(
        state=documents.member(lease.LeaseState, row["end_state"]),
        reason=row["end_reason"],
        message=row["end_message"],
        actor=row["end_actor"],
        at=documents.from_us(row["end_at"]),
    )


def event_columns(value: lease.LeaseEvent) -> dict[str, Any]:
    return {
        "revision": value.revision,
        "lease_id": value.lease_id,
        "namespace": value.namespace,
        "at": documents.to_us(value.at),
        "type": value.type,
        "message": value.message,
        "actor": value.actor,
        "state": value.state.value,
    }


def event_value(row: Row) -> lease.LeaseEvent:
    return lease.LeaseEvent(
        revision=row["revision"],
        lease_id=ids.LeaseId(row["lease_id"]),
        namespace=ids.Namespace(row["namespace"]),
        at=documents.from_us(row["at"]),
        type=row["type"],
        message=row["message"],
        actor=row["actor"],
        state=documents.member(lease.LeaseState, row["state"]),
    )


def name_columns(value: lease.NameBinding) -> dict[str, Any]:
    return {
        "namespace": value.namespace,
        "name": value.name,
        "lease_id": value.lease_id,
        "changed_at": documents.to_us(value.changed_at),
    }


def name_value(row: Row) -> lease.NameBinding:
    return lease.NameBinding(
        namespace=ids.Namespace(row["namespace"]),
        name=ids.LeaseName(row["name"]),
        lease_id=ids.LeaseId(row["lease_id"]),
        changed_at=documents.from_us(row["changed_at"]),
    )


def pool_columns(value: pool.Pool) -> dict[str, Any]:
    return {
        "namespace": value.namespace,
        "name": value.name,
        "created_at": documents.to_us(value.created_at),
        "deleted_at": optional_us(value.deleted_at),
        "spec": documents.dump(pool.PoolSpec, value.spec),
    }


def pool_value(row: Row) -> pool.Pool:
    return pool.Pool(
        namespace=ids.Namespace(row["namespace"]),
        name=ids.PoolName(row["name"]),
        spec=documents.load(pool.PoolSpec, row["spec"]),
        created_at=documents.from_us(row["created_at"]),
        deleted_at=_optional_time(row["deleted_at"]),
    )


def group_columns(value: group.WorkerGroup) -> dict[str, Any]:
    return {
        "id": value.id,
        "namespace": value.namespace,
        "pool": value.pool,
        "capacity_bytes": value.capacity_bytes,
        "framework_class": value.framework_class,
        "phase": value.phase.value,
        "generation": value.generation,
        "token": value.token,
        "created_at": documents.to_us(value.created_at),
        "emptied_at": optional_us(value.emptied_at),
        "replicas": value.replicas,
        "spec": documents.dump(resources.WorkerSpec, value.spec),
    }


def group_value(row: Row) -> group.WorkerGroup:
    return group.WorkerGroup(
        id=ids.GroupId(row["id"]),
        namespace=ids.Namespace(row["namespace"]),
        pool=None if row["pool"] is None else ids.PoolName(row["pool"]),
        spec=documents.load(resources.WorkerSpec, row["spec"]),
        capacity_bytes=row["capacity_bytes"],
        framework_class=row["framework_class"],
        phase=documents.member(group.GroupPhase, row["phase"]),
        generation=row["generation"],
        token=row["token"],
        created_at=documents.from_us(row["created_at"]),
        emptied_at=_optional_time(row["emptied_at"]),
        replicas=row["replicas"],
    )


def assignment_columns(value: group.Assignment) -> dict[str, Any]:
    return {
        "lease_id": value.lease_id,
        "group_id": value.group_id,
        "copy": value.copy,
        "generation": value.generation,
        "booked_bytes": value.booked_bytes,
        "assigned_at": documents.to_us(value.assigned_at),
        "draining": value.draining,
    }


def assignment_value(row: Row) -> group.Assignment:
    return group.Assignment(
        lease_id=ids.LeaseId(row["lease_id"]),
        group_id=ids.GroupId(row["group_id"]),
        copy=row["copy"],
        generation=row["generation"],
        booked_bytes=row["booked_bytes"],
        assigned_at=documents.from_us(row["assigned_at"]),
        draining=row["draining"],
    )


def report_columns(value: group.GroupReport) -> dict[str, Any]:
    return {
        "group_id": value.group_id,
        "replica": value.replica,
        "received_at": documents.to_us(value.received_at),
        "report": documents.dump(group.GroupReport, value),
    }


def report_value(row: Row) -> group.GroupReport:
    value: group.GroupReport = documents.load(group.GroupReport, row["report"])
    return value


def measurement_columns(value: group.Measurement) -> dict[str, Any]:
    return {
        "source_digest": value.source_digest,
        "config_digest": value.config_digest,
        "worker": value.worker,
        "bytes": value.bytes,
        "measured_at": documents.to_us(value.measured_at),
    }


def measurement_value(row: Row) -> group.Measurement:
    return group.Measurement(
        source_digest=ids.Digest(row["source_digest"]),
        config_digest=row["config_digest"],
        worker=row["worker"],
        bytes=row["bytes"],
        measured_at=documents.from_us(row["measured_at"]),
    )


def endpoint_columns(owner: str, value: resources.Endpoint) -> dict[str, Any]:
    return {
        "owner": owner,
        "host": value.host,
        "http_port": value.http_port,
        "grpc_port": value.grpc_port,
        "metrics_port": value.metrics_port,
    }


def endpoint_value(row: Row) -> resources.Endpoint:
    return resources.Endpoint(
        host=row["host"], http_port=row["http_port"], grpc_port=row["grpc_port"], metrics_port=row["metrics_port"]
    )


def image_rule_columns(value: image.ImageRule) -> dict[str, Any]:
    return {"pattern": value.pattern, "created_at": documents.to_us(value.created_at), "actor": value.actor}


def image_rule_value(row: Row) -> image.ImageRule:
    return image.ImageRule(pattern=row["pattern"], created_at=documents.from_us(row["created_at"]), actor=row["actor"])


def leader_columns(value: store.Leader) -> dict[str, Any]:
    return {"only": 1, "term": value.term, "holder": value.holder, "beat": value.beat}


def leader_value(row: Row) -> store.Leader:
    return store.Leader(term=row["term"], holder=row["holder"], beat=row["beat"])
