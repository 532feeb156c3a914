"""Decides what the shell offers after Tab. Quick, and silent whatever goes wrong: a prompt is no place for errors.

Imports what takes long inside functions: options name these functions, and most commands never call them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from tmsctl import config

if TYPE_CHECKING:
    from tmsctl import client

PATIENCE_S = 1.0
MOST = 200


def targets(incomplete: str) -> list[tuple[str, str]]:
    """Saved targets with their addresses."""
    with contextlib.suppress(Exception):
        known = config.load().by_name
        return [(name, target.address) for name, target in known.items() if name.startswith(incomplete)]
    return []


def leases(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids and names of living leases with their states."""
    with contextlib.suppress(Exception):
        return [each for each in _leases(ctx) if each[0].startswith(incomplete)]
    return []


def pools(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of pools."""
    with contextlib.suppress(Exception):
        return [name for name in _pools(ctx) if name.startswith(incomplete)]
    return []


def _leases(ctx: typer.Context) -> Iterator[tuple[str, str]]:
    from protos.tms.v1 import lease_pb2  # noqa: PLC0415 - see the module's docstring

    request = lease_pb2.ListLeasesRequest(namespace=_namespace(ctx), living_only=True, page_size=MOST)
    with _client(ctx) as connection:
        for lease in connection.once(connection.leases.List, request).leases:
            said = lease_pb2.LeaseState.Name(lease.state).removeprefix("LEASE_STATE_")
            yield from ((name, f"{said}, {lease.id}") for name in lease.names)
            yield lease.id, said


def _pools(ctx: typer.Context) -> list[str]:
    from protos.tms.v1 import pool_pb2  # noqa: PLC0415 - see the module's docstring

    with _client(ctx) as connection:
        found = connection.once(connection.pools.List, pool_pb2.ListPoolsRequest(namespace=_namespace(ctx)))
        return [pool.name for pool in found.pools]


def _namespace(ctx: typer.Context) -> str:
    return ctx.params.get("namespace") or ""


def _client(ctx: typer.Context) -> client.Client:
    from tmsctl import client  # noqa: PLC0415 - see the module's docstring

    return client.Client(config.resolve(ctx.params.get("target")), timeout_s=PATIENCE_S)
