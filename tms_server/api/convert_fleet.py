"""Pools, workers and sidecars between the wire and the model, both ways; no protobuf object passes inward."""

from __future__ import annotations

import datetime as dt

from protos.tms.v1 import agent_pb2, pool_pb2
from tms_server.api import fields
from tms_server.fleet import desired
from tms_server.model import errors, group, ids, pool, source
from tms_server.ports import resolver
from tms_server.services import agents, images, pools, workers

WORKER_STATES = {state: pool_pb2.WorkerState.Value(f"WORKER_STATE_{state}") for state in workers.WorkerState}
MAX_WORKERS_DEFAULT = 4
MODELS_MAX, ENDPOINTS_MAX, FILES_MAX, BUCKETS_MAX = 4096, 4096, 100_000, 256


def pool_spec(message: pool_pb2.PoolSpec) -> pool.PoolSpec:
    """Definition of a pool as asked for."""
    if message.expiry == pool_pb2.EXPIRY_POLICY_LINGER:
        raise errors.Unimplemented("spec.expiry: this server does not keep models of ended leases; give EAGER")
    if message.expiry not in (pool_pb2.EXPIRY_POLICY_UNSPECIFIED, pool_pb2.EXPIRY_POLICY_EAGER):
        raise errors.InvalidField("spec.expiry", "give EAGER, or leave it out")
    return pool.PoolSpec(
        worker=fields.worker(message.worker),
        min_workers=message.min_workers,
        max_workers=message.max_workers or MAX_WORKERS_DEFAULT,
        idle_worker_linger=fields.span("spec.idle_worker_linger", message.idle_worker_linger),
    )


def pool_message(view: pools.PoolView) -> pool_pb2.Pool:
    """A pool to send."""
    spec = view.pool.spec
    return pool_pb2.Pool(
        name=view.pool.name,
        namespace=view.pool.namespace,
        spec=pool_pb2.PoolSpec(
            worker=fields.worker_message(spec.worker),
            min_workers=spec.min_workers,
            max_workers=spec.max_workers,
            expiry=pool_pb2.EXPIRY_POLICY_EAGER,
            idle_worker_linger=fields.duration(spec.idle_worker_linger),
        ),
        created_at=fields.timestamp(view.pool.created_at),
        workers=view.workers,
        leases=view.leases,
        booked_bytes=view.booked_bytes,
    )


def worker_message(view: workers.WorkerView) -> pool_pb2.Worker:
    """A worker to send."""
    return pool_pb2.Worker(
        id=view.stored.id,
        namespace=view.stored.namespace,
        pool=view.stored.pool or "",
        state=WORKER_STATES[view.state],
        framework_class=view.stored.framework_class or "",
        capacity_bytes=view.stored.capacity_bytes,
        booked_bytes=view.booked_bytes,
        measured_bytes=view.measured_bytes,
        lease_ids=view.lease_ids,
        endpoint=fields.endpoint_message(view.endpoint),
        generation=view.stored.generation,
        created_at=fields.timestamp(view.stored.created_at),
        last_report_at=fields.timestamp(view.last_report_at),
        restarts=view.restarts,
        models=map(fields.model_status, view.models),
        replicas=map(_replica_message, view.replicas),
        wanted_replicas=view.wanted_replicas,
    )


def _replica_message(view: workers.ReplicaView) -> pool_pb2.WorkerReplica:
    return pool_pb2.WorkerReplica(
        id=view.id,
        state=WORKER_STATES[view.state],
        node=view.seen.node if view.seen is not None else "",
        endpoint=fields.endpoint_message(view.endpoint),
        restarts=view.seen.restarts if view.seen is not None else 0,
        reason=view.trouble.reason if view.trouble is not None else "",
        message=view.trouble.message if view.trouble is not None else "",
        last_report_at=fields.timestamp(view.report.received_at if view.report is not None else None),
        measured_bytes=view.report.used_bytes if view.report is not None else 0,
    )


def image_rule_message(view: images.RuleView) -> pool_pb2.ImageRule:
    """A rule for images to send."""
    return pool_pb2.ImageRule(
        pattern=view.pattern,
        created_at=fields.timestamp(view.created_at),
        actor=view.actor,
        from_settings=view.from_settings,
    )


def desired_message(state: agents.DesiredState) -> agent_pb2.ServerMessage:
    """What a sidecar is told."""
    return agent_pb2.ServerMessage(
        desired=agent_pb2.Desired(
            epoch=state.epoch,
            generation=state.wanted.generation,
            models=[_desired_model(each, state.access.get(each.source.uri)) for each in state.wanted.models],
            endpoints=[
                agent_pb2.DesiredEndpoint(endpoint=fields.endpoint_message(each.endpoint), models=each.models)
                for each in state.wanted.endpoints
            ],
            report_interval=fields.duration(state.report_interval),
            routed=state.routed,
        )
    )


def report(message: agent_pb2.Report, session: agents.Session, received_at: dt.datetime) -> group.GroupReport:
    """What a sidecar says."""
    if len(message.models) > MODELS_MAX or len(message.endpoints) > ENDPOINTS_MAX:
        raise errors.InvalidField("report", f"give at most {MODELS_MAX} models and {ENDPOINTS_MAX} endpoints")
    return group.GroupReport(
        group_id=session.worker.group_id,
        replica=session.worker.replica,
        incarnation=session.incarnation,
        epoch=message.epoch,
        generation=message.generation,
        server_ready=message.server_ready,
        activity_known=message.activity_known,
        received_at=received_at,
        models=tuple(_reported(f"report.models[{index}]", each) for index, each in enumerate(message.models)),
        endpoints=tuple(map(fields.endpoint, message.endpoints)),
        worker_endpoint=fields.endpoint(message.worker_endpoint) if message.HasField("worker_endpoint") else None,
        used_bytes=message.memory.used_bytes,
        total_bytes=message.memory.total_bytes,
        cache_bytes=message.memory.cache_bytes,
        server_restarts=message.server_restarts,
        sampled_at=min(fields.instant("report.at", message.at), received_at) if message.HasField("at") else None,
        worker_trouble=message.worker_trouble,
        in_flight_known=message.in_flight_known,
        gpu_utilization_permille=(
            message.gpu_utilization_permille if message.HasField("gpu_utilization_permille") else None
        ),
    )


def _desired_model(wanted: desired.WantedModel, access: resolver.Access | None) -> agent_pb2.DesiredModel:
    return agent_pb2.DesiredModel(
        name=wanted.key.name,
        uri=wanted.source.uri,
        files=[
            agent_pb2.SourceFile(path=file.path, size_bytes=file.size_bytes, version=file.version, sha256=file.sha256)
            for file in wanted.source.files
        ],
        source_digest=wanted.key.source_digest,
        framework=wanted.source.framework,
        config_override=wanted.override,
        s3=_s3_access(access) if isinstance(access, resolver.S3Access) else None,
        http=(
            agent_pb2.HttpAccess(authorization=access.authorization)
            if isinstance(access, resolver.HttpAccess)
            else None
        ),
        gcs=(
            agent_pb2.GcsAccess(endpoint_url=access.endpoint_url, bearer_token=access.bearer_token)
            if isinstance(access, resolver.GcsAccess)
            else None
        ),
        layout=_LAYOUTS[wanted.source.layout],
    )


_LAYOUTS = {
    source.Layout.TREE: agent_pb2.SOURCE_LAYOUT_TREE,
    source.Layout.FILE: agent_pb2.SOURCE_LAYOUT_FILE,
    source.Layout.ARCHIVE: agent_pb2.SOURCE_LAYOUT_ARCHIVE,
}


def _s3_access(value: resolver.S3Access) -> agent_pb2.S3Access:
    return agent_pb2.S3Access(
        endpoint_url=value.endpoint_url,
        region=value.region,
        path_style=value.path_style,
        access_key_id=value.access_key_id,
        secret_access_key=value.secret_access_key,
        session_token=value.session_token,
    )


def _reported(path: str, message: agent_pb2.ReportedModel) -> group.ModelReport:
    if message.state not in fields.MODEL_STATES_BACK:
        raise errors.InvalidField(f"{path}.state", "give a state of a model")
    if len(message.files) > FILES_MAX:
        raise errors.InvalidField(f"{path}.files", f"give at most {FILES_MAX} files")
    if len(message.latency) > BUCKETS_MAX:
        raise errors.InvalidField(f"{path}.latency", f"give at most {BUCKETS_MAX} buckets")
    used = message.HasField("last_inference")
    return group.ModelReport(
        name=message.name,
        source_digest=ids.Digest(message.source_digest),
        config_digest=message.config_digest,
        state=fields.MODEL_STATES_BACK[message.state],
        reason=message.reason,
        message=message.message,
        fetched_bytes=message.fetched_bytes,
        total_bytes=message.total_bytes,
        fetch_bytes_per_s=max(message.fetch_bytes_per_s, 0),
        inference_count=message.inference_count,
        last_inference=fields.instant(f"{path}.last_inference", message.last_inference) if used else None,
        in_flight=message.in_flight,
        queue_ns=message.queue_ns,
        compute_ns=message.compute_ns,
        bytes_before_load=message.bytes_before_load,
        bytes_peak_load=message.bytes_peak_load,
        bytes_after_load=message.bytes_after_load,
        files=tuple(
            source.SourceFile(path=file.path, size_bytes=file.size_bytes, version=file.version, sha256=file.sha256)
            for file in message.files
        ),
        retryable=message.retryable,
        request_count=message.request_count,
        failure_count=message.failure_count,
        latency=tuple(group.LatencyBucket(each.upper_us, each.count) for each in message.latency),
    )
