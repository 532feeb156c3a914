"""The shared memory extensions over HTTP: regions registered, listed and forgotten."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from gpu_worker.engine import border
from gpu_worker.http import decoding, messages, routes
from gpu_worker.http.routes import Endpoint
from gpu_worker.wire import datatypes
from gpu_worker.wire import sharing as wire_sharing


class Regions:
    """Handles the calls of both kinds of regions."""

    def __init__(self, engine: border.Engine, sharing: wire_sharing.Sharing) -> None:
        self._engine = engine
        self._sharing = sharing

    async def handle(self, request: messages.Request, route: routes.Route) -> messages.Response:
        """Raises InferenceError for what is refused."""
        if route.endpoint is Endpoint.SYSTEM_REGIONS:
            found = await self._engine.system_regions(route.region)
            return messages.ok([_system(each) for each in found])
        if route.endpoint is Endpoint.CUDA_REGIONS:
            return messages.ok([_cuda(each) for each in await self._engine.cuda_regions(route.region)])
        self._sharing.check()
        if route.endpoint is Endpoint.SYSTEM_REGISTER:
            await self._engine.register_system_region(_system_region(route.region, decoding.body(request)))
        elif route.endpoint is Endpoint.CUDA_REGISTER:
            await self._engine.register_cuda_region(*_cuda_region(route.region, decoding.body(request)))
        elif route.endpoint is Endpoint.SYSTEM_UNREGISTER:
            await self._engine.unregister_system_region(route.region)
        else:
            await self._engine.unregister_cuda_region(route.region)
        return messages.ok()


def _system(region: border.SystemRegion) -> dict[str, Any]:
    return {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.byte_size}


def _cuda(region: border.CudaRegion) -> dict[str, Any]:
    return {"name": region.name, "device_id": region.device_id, "byte_size": region.byte_size}


def _system_region(name: str, body: dict[str, Any]) -> border.SystemRegion:
    key = body.get("key")
    if not isinstance(key, str):
        raise datatypes.refused("Unable to parse 'key': must be the name of a shared memory object")
    return border.SystemRegion(name, key, _number(body, "offset", 0), _number(body, "byte_size"))


def _cuda_region(name: str, body: dict[str, Any]) -> tuple[border.CudaRegion, bytes]:
    raw_handle = body.get("raw_handle")
    text = raw_handle.get("b64") if isinstance(raw_handle, dict) else None
    if not isinstance(text, str):
        raise datatypes.refused("Unable to parse 'raw_handle': must be an object with the base64 text 'b64'")
    try:
        handle = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise datatypes.refused(f"Unable to parse 'b64' of 'raw_handle': must be base64 text: {error}") from error
    return border.CudaRegion(name, _number(body, "device_id"), _number(body, "byte_size")), handle


def _number(body: dict[str, Any], key: str, default: int | None = None) -> int:
    value = body.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise datatypes.refused(f"Unable to parse '{key}': must be a non-negative integer below 2^63")
    return value
