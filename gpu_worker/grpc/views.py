"""Messages for what the engine tells about itself. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from gpu_worker.engine import border
from protos.inference.v2 import predict_pb2


def model(metadata: border.ModelMetadata) -> predict_pb2.ModelMetadataResponse:
    return predict_pb2.ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        inputs=map(_tensor, metadata.inputs),
        outputs=map(_tensor, metadata.outputs),
    )


def index(entries: Iterable[border.IndexEntry]) -> predict_pb2.RepositoryIndexResponse:
    response = predict_pb2.RepositoryIndexResponse()
    for entry in entries:
        response.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
    return response


def statistics(of: border.ModelStatistics) -> predict_pb2.ModelStatistics:
    return predict_pb2.ModelStatistics(
        name=of.name,
        version=of.version,
        last_inference=of.last_inference_ms,
        inference_count=of.inference_count,
        execution_count=of.execution_count,
        inference_stats=predict_pb2.InferStatistics(
            success=_duration(of.success),
            fail=_duration(of.fail),
            queue=_duration(of.queue),
            compute_input=_duration(of.compute_input),
            compute_infer=_duration(of.compute_infer),
            compute_output=_duration(of.compute_output),
            cache_hit=_duration(of.cache_hit),
            cache_miss=_duration(of.cache_miss),
        ),
        batch_stats=map(_batch, of.batches),
        memory_usage=[
            predict_pb2.MemoryUsage(type=kind, id=device, byte_size=size)
            for (kind, device), size in of.memory_bytes.items()
        ],
    )


def set_log_setting(setting: predict_pb2.LogSettingsResponse.SettingValue, value: border.LogSetting) -> None:
    """Sets the member of the oneof that fits `value`."""
    if isinstance(value, bool):
        setting.bool_param = value
    elif isinstance(value, int):
        setting.uint32_param = value
    else:
        setting.string_param = value


def _tensor(spec: border.TensorMetadata) -> predict_pb2.ModelMetadataResponse.TensorMetadata:
    return predict_pb2.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def _duration(of: border.Duration) -> predict_pb2.StatisticDuration:
    return predict_pb2.StatisticDuration(count=of.count, ns=of.ns)


def _batch(of: border.BatchStatistics) -> predict_pb2.InferBatchStatistics:
    return predict_pb2.InferBatchStatistics(
        batch_size=of.batch_size,
        compute_input=_duration(of.compute_input),
        compute_infer=_duration(of.compute_infer),
        compute_output=_duration(of.compute_output),
    )
