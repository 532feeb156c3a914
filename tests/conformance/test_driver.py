"""The sidecar's driver before a server that restricts calls: a real Triton, and the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from sidecar import access, errors, runtime
from tests.conformance import servers
from tests.conformance.triton import environment

pytestmark = pytest.mark.skipif(bool(environment.unfit()), reason=environment.unfit() or "none")

_RESTRICTED = "--grpc-restricted-protocol=health,statistics,model-repository:admin-key=value"


def test_restricted_calls_are_refused_with_the_remedy_and_made_with_the_header(
    start: Callable[..., AbstractContextManager[servers.Server]],
) -> None:
    with start("--model-control-mode=explicit", _RESTRICTED) as server:
        asyncio.run(_drive(f"127.0.0.1:{server.grpc_port}"))


async def _drive(target: str) -> None:
    stranger, let_in = runtime.Runtime(target), runtime.Runtime(target, access.Access(headers={"admin-key": "value"}))
    try:
        with pytest.raises(errors.Restricted, match="--worker-headers-file"):
            await stranger.index()
        with pytest.raises(errors.ModelFailed, match="WorkerRestricted"):
            await stranger.load("id_fp32", "")
        await let_in.load("id_fp32", "")
        assert (await let_in.index()).loaded == {"id_fp32"}
        assert "id_fp32" in (await let_in.statistics()).models
    finally:
        await stranger.close()
        await let_in.close()
