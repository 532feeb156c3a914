"""Decides what answers look like. Pure: messages in, text out; only `out` writes.

json is the protobuf JSON mapping under the fields' API names with every field present, so that scripts can rely on them.
Text that others wrote cannot steer the terminal: control characters are shown, not sent.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf import duration_pb2, json_format, message, timestamp_pb2

from protos.tms.v1 import common_pb2, lease_pb2, pool_pb2
from tmsctl import options, scaling, values

Row = Sequence[str]


def out(text: str) -> None:
    """Writes an answer and a line's end at once; nothing for no text."""
    if text:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def answer(said: message.Message, output: options.Output, *, table: str, names: Iterable[str]) -> str:
    """One answer in the wanted form. `table` and `names` are what people and the form `name` get."""
    if output is options.Output.TABLE:
        return table
    if output is options.Output.NAME:
        return "\n".join(names)
    return structured(tree(said), output)


def line(said: message.Message, output: options.Output, *, table: str, name: str) -> str:
    """One element of a stream: json on one line, yaml as a document of its own."""
    if output is options.Output.JSON:
        return json.dumps(tree(said), ensure_ascii=False)
    shown = answer(said, output, table=table, names=[name])
    return f"---\n{shown}" if output is options.Output.YAML else shown


def tree(said: message.Message) -> dict[str, Any]:
    """The message as JSON values."""
    return json_format.MessageToDict(said, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def structured(value: Any, output: options.Output) -> str:
    """JSON or YAML of plain values."""
    if output is options.Output.JSON:
        return json.dumps(value, indent=2, ensure_ascii=False)
    import yaml  # noqa: PLC0415 - only where it is asked for: it takes long to import

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).rstrip("\n")


def table(headers: Row, rows: Iterable[Row]) -> str:
    """Left-aligned columns, two spaces apart, nothing cut off."""
    lines = [[values.clean(cell) or "-" for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[column]) for row in lines) for column in range(len(headers))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in lines)


def state(lease: lease_pb2.Lease) -> str:
    """The state as people write it: ACTIVE, PENDING and so on."""
    return lease_pb2.LeaseState.Name(lease.state).removeprefix("LEASE_STATE_")


def reason(lease: lease_pb2.Lease) -> str:
    """Why it ended, or the first condition that is not met."""
    if lease.HasField("end"):
        return lease.end.reason
    return next((each.reason or each.type for each in lease.conditions if _is_bad(each)), "")


def why(lease: lease_pb2.Lease) -> str:
    """The sentence that belongs to `reason`."""
    if lease.HasField("end"):
        return lease.end.message
    return next((each.message for each in lease.conditions if _is_bad(each)), "")


def _is_bad(condition: common_pb2.Condition) -> bool:
    return condition.status == (condition.type == "Warning")


def leases(found: Iterable[lease_pb2.Lease]) -> str:
    headers = ("ID", "STATE", "REASON", "NAMES", "MODELS", "PLACE", "HTTP", "EXPIRES")
    return table(headers, map(_lease_row, found))


def lease(one: lease_pb2.Lease) -> str:
    """Everything that people ask about one lease, models and conditions below."""
    facts = [
        ("Lease", one.id or "(dry run: nothing is stored)"),
        ("Namespace", one.namespace),
        ("Names", ", ".join(one.names)),
        ("State", " ".join(filter(None, (state(one), reason(one))))),
        ("Place", _place(one)),
        ("Worker", one.worker_group),
        ("Replicas", _replicas(one)),
        ("Grows", _growth(one)),
        ("Created", instant(one.created_at)),
        ("Active", instant(one.active_at)),
        ("Used", instant(one.last_activity_at)),
        ("Expires", _deadline(one.expires) if one.HasField("expires") else ""),
        ("Labels", ", ".join(f"{key}={value}" for key, value in sorted(one.labels.items()))),
        *_endpoint_facts(one.endpoint if one.HasField("endpoint") else None),
        ("Ended", f"{instant(one.end.at)} by {one.end.actor or '?'}: {one.end.message}" if one.HasField("end") else ""),
    ]
    blocks = [pairs(facts), models(one), conditions(one.conditions)]
    return "\n\n".join(filter(None, blocks))


def pairs(facts: Iterable[tuple[str, str]]) -> str:
    """Label and value a line, without the empty ones."""
    known = [(label, values.clean(value)) for label, value in facts if value]
    width = max((len(label) for label, _ in known), default=0)
    return "\n".join(f"{label.ljust(width)}  {value}" for label, value in known)


def models(one: lease_pb2.Lease) -> str:
    headers = ("MODEL", "STATE", "FETCHED", "BOOKED", "FRAMEWORK", "INFERENCES", "MESSAGE")
    rows = [_model_row(status) for status in one.model_statuses]
    known = {status.name for status in one.model_statuses}
    rows += [(each.name, "", "", "", each.framework, "", each.uri) for each in one.models if each.name not in known]
    return table(headers, rows) if rows else ""


def conditions(found: Sequence[common_pb2.Condition]) -> str:
    headers = ("CONDITION", "MET", "REASON", "SINCE", "MESSAGE")
    rows = [
        (each.type, "yes" if each.status else "no", each.reason, instant(each.changed_at), each.message)
        for each in found
    ]
    return table(headers, rows) if rows else ""


def events(found: Iterable[lease_pb2.LeaseEvent]) -> str:
    headers = ("AT", "TYPE", "STATE", "ACTOR", "MESSAGE")
    return table(headers, [(instant(e.at), e.type, _event_state(e), e.actor, e.message) for e in found])


def explanation(said: lease_pb2.ExplainLeaseResponse) -> str:
    headers = ("WORKER", "FITS", "RULE", "FREE", "MISSING", "HELD BY", "MESSAGE")
    rows = [_verdict_row(verdict) for verdict in said.workers]
    facts = [
        ("Summary", said.summary),
        ("Needs", values.format_size(said.needed_bytes) if said.needed_bytes else ""),
        ("Nearest fit", said.nearest_fit),
        ("It would fit if", said.smallest_change),
    ]
    blocks = [pairs(facts), table(headers, rows) if rows else "", conditions(said.conditions)]
    return "\n\n".join(filter(None, blocks))


def names(found: Iterable[lease_pb2.LeaseName]) -> str:
    headers = ("NAME", "LEASE", "HTTP", "GRPC", "CHANGED")
    return table(
        headers,
        [(n.name, n.lease_id, _http(n.endpoint), _grpc(n.endpoint), instant(n.changed_at)) for n in found],
    )


def pools(found: Iterable[pool_pb2.Pool]) -> str:
    headers = ("NAME", "WORKERS", "LEASES", "BOOKED", "RUNTIME", "MEMORY", "GPUS", "CREATED")
    return table(headers, map(_pool_row, found))


def workers(found: Iterable[pool_pb2.Worker]) -> str:
    headers = ("ID", "STATE", "READY", "POOL", "CLASS", "BOOKED", "MEASURED", "CAPACITY", "LEASES", "HTTP", "RESTARTS")
    return table(headers, map(_worker_row, found))


def images(found: Iterable[pool_pb2.ImageRule]) -> str:
    headers = ("IMAGE", "FROM", "SINCE")
    rows = [
        (each.pattern, "settings" if each.from_settings else each.actor, instant(each.created_at)) for each in found
    ]
    return table(headers, rows)


def replicas(found: Iterable[pool_pb2.Worker]) -> str:
    headers = ("WORKER", "REPLICA", "STATE", "NODE", "HTTP", "MEASURED", "RESTARTS", "MESSAGE")
    return table(headers, (_replica_row(worker, each) for worker in found for each in worker.replicas))


def instant(at: timestamp_pb2.Timestamp) -> str:
    """UTC to the second; empty for one that is not set."""
    if not at.seconds and not at.nanos:
        return ""
    return at.ToDatetime(tzinfo=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def span(length: duration_pb2.Duration) -> str:
    """Whole seconds, as durations are written."""
    return values.format_duration(max(dt.timedelta(seconds=length.seconds), dt.timedelta(0)))


def _lease_row(one: lease_pb2.Lease) -> Row:
    expires = f"in {span(one.expires.remaining)}" if one.HasField("expires") else ""
    served = ",".join(model.name for model in one.models)
    return (one.id, state(one), reason(one), ",".join(one.names), served, _place(one), _http(one.endpoint), expires)


def _place(one: lease_pb2.Lease) -> str:
    if one.WhichOneof("placement") == "dedicated":
        return "dedicated"
    return f"pool/{one.pool.pool or 'default'}"


def _model_row(status: common_pb2.ModelStatus) -> Row:
    fetched = f"{values.format_size(status.fetched_bytes)}/{values.format_size(status.total_bytes)}"
    return (
        status.name,
        common_pb2.ModelState.Name(status.state).removeprefix("MODEL_STATE_"),
        fetched if status.total_bytes else "",
        values.format_size(status.booked_bytes) if status.booked_bytes else "",
        status.framework,
        str(status.inference_count),
        " ".join(filter(None, (status.reason, status.message))),
    )


def _event_state(event: lease_pb2.LeaseEvent) -> str:
    return lease_pb2.LeaseState.Name(event.state).removeprefix("LEASE_STATE_")


def _verdict_row(verdict: lease_pb2.WorkerVerdict) -> Row:
    return (
        verdict.worker_group,
        "yes" if verdict.fits else "no",
        verdict.rule,
        f"{values.format_size(verdict.free_bytes)} of {values.format_size(verdict.capacity_bytes)}",
        values.format_size(verdict.missing_bytes) if verdict.missing_bytes else "",
        ",".join(verdict.held_by),
        verdict.message,
    )


def _pool_row(pool: pool_pb2.Pool) -> Row:
    worker, spec = pool.spec.worker, pool.spec
    return (
        pool.name,
        f"{pool.workers} of {spec.min_workers} to {spec.max_workers}",
        str(pool.leases),
        values.format_size(pool.booked_bytes),
        " ".join(filter(None, (worker.command or worker.image, worker.profile))),
        values.format_size(worker.resources.memory_bytes) if worker.resources.memory_bytes else "",
        str(worker.resources.gpus),
        instant(pool.created_at),
    )


def _worker_row(worker: pool_pb2.Worker) -> Row:
    return (
        worker.id,
        pool_pb2.WorkerState.Name(worker.state).removeprefix("WORKER_STATE_"),
        _ready(worker),
        worker.pool or "(dedicated)",
        worker.framework_class,
        values.format_size(worker.booked_bytes),
        values.format_size(worker.measured_bytes) if worker.measured_bytes else "",
        values.format_size(worker.capacity_bytes),
        str(len(worker.lease_ids)),
        _http(worker.endpoint),
        str(worker.restarts),
    )


def _ready(worker: pool_pb2.Worker) -> str:
    if not worker.wanted_replicas:
        return ""
    ready = sum(each.state == pool_pb2.WORKER_STATE_READY for each in worker.replicas)
    return f"{ready}/{worker.wanted_replicas}"


def _replica_row(worker: pool_pb2.Worker, one: pool_pb2.WorkerReplica) -> Row:
    return (
        worker.id,
        one.id,
        pool_pb2.WorkerState.Name(one.state).removeprefix("WORKER_STATE_"),
        one.node,
        _http(one.endpoint),
        values.format_size(one.measured_bytes) if one.measured_bytes else "",
        str(one.restarts),
        " ".join(filter(None, (one.reason, one.message))),
    )


def _replicas(one: lease_pb2.Lease) -> str:
    many = max(one.wanted_replicas, one.ready_replicas) > 1 or one.HasField("autoscaling")
    return f"{one.ready_replicas} of {one.wanted_replicas} ready" if many else ""


def _growth(one: lease_pb2.Lease) -> str:
    if not one.HasField("autoscaling"):
        return ""
    grows = one.autoscaling
    after = ", ".join(map(scaling.format_metric, grows.metrics))
    return f"{grows.min_replicas or 1} to {grows.max_replicas}, after {after}"


def _endpoint_facts(endpoint: common_pb2.Endpoint | None) -> list[tuple[str, str]]:
    if endpoint is None:
        return []
    metrics = f"http://{host(endpoint)}:{endpoint.metrics_port}/metrics" if endpoint.metrics_port else ""
    return [("HTTP", _http(endpoint)), ("gRPC", _grpc(endpoint)), ("Metrics", metrics)]


def host(endpoint: common_pb2.Endpoint) -> str:
    """As it stands before a port."""
    return f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host


def _http(endpoint: common_pb2.Endpoint) -> str:
    return f"http://{host(endpoint)}:{endpoint.http_port}" if endpoint.http_port else ""


def _grpc(endpoint: common_pb2.Endpoint) -> str:
    return f"{host(endpoint)}:{endpoint.grpc_port}" if endpoint.grpc_port else ""


def _deadline(deadline: common_pb2.Deadline) -> str:
    return f"in {span(deadline.remaining)}, {instant(deadline.at)}, unless renewed"
