"""Translates between the stream's messages and the sidecar's values; the one place that does."""

from __future__ import annotations

import datetime as dt

from google.protobuf import timestamp_pb2

from protos.tms.v1 import agent_pb2, common_pb2
from sidecar import values

_INTERVAL_S, _LEAST_INTERVAL_S, _MOST_INTERVAL_S = 2.0, 0.1, 60.0


def desired(message: agent_pb2.Desired) -> values.Desired:
    """What the server wants. A report interval outside 0.1 s to 60 s is brought inside; none means 2 s."""
    interval_s = message.report_interval.ToTimedelta().total_seconds() or _INTERVAL_S
    return values.Desired(
        epoch=message.epoch,
        generation=message.generation,
        models=tuple(_model(each) for each in message.models),
        servings=tuple(values.Serving(_endpoint(each.endpoint), tuple(each.models)) for each in message.endpoints),
        report_interval_s=min(max(interval_s, _LEAST_INTERVAL_S), _MOST_INTERVAL_S),
        routed=message.routed,
    )


def without_credentials(message: agent_pb2.Desired) -> agent_pb2.Desired:
    """A copy that may be written to disk."""
    copy = agent_pb2.Desired()
    copy.CopyFrom(message)
    for model in copy.models:
        for credentials in ("s3", "http", "gcs"):
            model.ClearField(credentials)
    return copy


def endpoint(value: values.Endpoint) -> common_pb2.Endpoint:
    return common_pb2.Endpoint(
        host=value.host, http_port=value.http_port, grpc_port=value.grpc_port, metrics_port=value.metrics_port
    )


def source_file(value: values.SourceFile) -> agent_pb2.SourceFile:
    return agent_pb2.SourceFile(
        path=value.path, size_bytes=value.size_bytes, version=value.version, sha256=value.sha256
    )


def timestamp(ms: int) -> timestamp_pb2.Timestamp:
    """From milliseconds since the epoch."""
    made = timestamp_pb2.Timestamp()
    made.FromDatetime(dt.datetime.fromtimestamp(ms / 1000, dt.UTC))
    return made


def _model(message: agent_pb2.DesiredModel) -> values.Model:
    return values.Model(
        name=message.name,
        uri=message.uri,
        files=tuple(
            values.SourceFile(path=each.path, size_bytes=each.size_bytes, version=each.version, sha256=each.sha256)
            for each in message.files
        ),
        source_digest=message.source_digest,
        framework=message.framework,
        config_override=message.config_override,
        layout=_LAYOUTS.get(message.layout, values.Layout.TREE),
        access=_access(message),
    )


_LAYOUTS = {
    agent_pb2.SOURCE_LAYOUT_FILE: values.Layout.FILE,
    agent_pb2.SOURCE_LAYOUT_ARCHIVE: values.Layout.ARCHIVE,
}


def _access(message: agent_pb2.DesiredModel) -> values.Access | None:
    if message.HasField("s3"):
        return _s3_access(message.s3)
    if message.HasField("http"):
        return values.HttpAccess(authorization=message.http.authorization)
    if message.HasField("gcs"):
        return values.GcsAccess(endpoint_url=message.gcs.endpoint_url, bearer_token=message.gcs.bearer_token)
    return None


def _s3_access(message: agent_pb2.S3Access) -> values.S3Access:
    return values.S3Access(
        endpoint_url=message.endpoint_url,
        region=message.region,
        path_style=message.path_style,
        access_key_id=message.access_key_id,
        secret_access_key=message.secret_access_key,
        session_token=message.session_token,
    )


def _endpoint(message: common_pb2.Endpoint) -> values.Endpoint:
    return values.Endpoint(message.host, message.http_port, message.grpc_port, message.metrics_port)
