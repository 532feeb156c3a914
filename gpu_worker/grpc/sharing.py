"""The shared memory extensions over gRPC: regions registered, listed and forgotten."""

from __future__ import annotations

from google.protobuf import message as protobuf

from gpu_worker.engine import border
from gpu_worker.grpc import calls
from gpu_worker.wire import sharing as wire_sharing
from protos.inference.v2 import predict_pb2


class Regions:
    """The six methods of both kinds of regions."""

    def __init__(self, engine: border.Engine, sharing: wire_sharing.Sharing) -> None:
        self._engine = engine
        self._sharing = sharing

    def handlers(self) -> dict[str, calls.Handler]:
        """By the method's name."""
        return {
            "SystemSharedMemoryStatus": self._system_status,
            "SystemSharedMemoryRegister": self._system_register,
            "SystemSharedMemoryUnregister": self._system_unregister,
            "CudaSharedMemoryStatus": self._cuda_status,
            "CudaSharedMemoryRegister": self._cuda_register,
            "CudaSharedMemoryUnregister": self._cuda_unregister,
        }

    async def _system_status(
        self, request: predict_pb2.SystemSharedMemoryStatusRequest, _call: calls.Call
    ) -> protobuf.Message:
        response = predict_pb2.SystemSharedMemoryStatusResponse()
        for region in await self._engine.system_regions(request.name):
            told = response.regions[region.name]
            told.name, told.key, told.offset, told.byte_size = region.name, region.key, region.offset, region.byte_size
        return response

    async def _system_register(
        self, request: predict_pb2.SystemSharedMemoryRegisterRequest, _call: calls.Call
    ) -> protobuf.Message:
        self._sharing.check()
        region = border.SystemRegion(request.name, request.key, request.offset, request.byte_size)
        await self._engine.register_system_region(region)
        return predict_pb2.SystemSharedMemoryRegisterResponse()

    async def _system_unregister(
        self, request: predict_pb2.SystemSharedMemoryUnregisterRequest, _call: calls.Call
    ) -> protobuf.Message:
        self._sharing.check()
        await self._engine.unregister_system_region(request.name)
        return predict_pb2.SystemSharedMemoryUnregisterResponse()

    async def _cuda_status(
        self, request: predict_pb2.CudaSharedMemoryStatusRequest, _call: calls.Call
    ) -> protobuf.Message:
        response = predict_pb2.CudaSharedMemoryStatusResponse()
        for region in await self._engine.cuda_regions(request.name):
            told = response.regions[region.name]
            told.name, told.device_id, told.byte_size = region.name, region.device_id, region.byte_size
        return response

    async def _cuda_register(
        self, request: predict_pb2.CudaSharedMemoryRegisterRequest, _call: calls.Call
    ) -> protobuf.Message:
        self._sharing.check()
        region = border.CudaRegion(request.name, request.device_id, request.byte_size)
        await self._engine.register_cuda_region(region, request.raw_handle)
        return predict_pb2.CudaSharedMemoryRegisterResponse()

    async def _cuda_unregister(
        self, request: predict_pb2.CudaSharedMemoryUnregisterRequest, _call: calls.Call
    ) -> protobuf.Message:
        self._sharing.check()
        await self._engine.unregister_cuda_region(request.name)
        return predict_pb2.CudaSharedMemoryUnregisterResponse()
