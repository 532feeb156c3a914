"""Decides what the shell offers after Tab. Quick, and silent whatever goes wrong: a prompt is no place for errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from tmsctl import late

PATIENCE_S = 1.0
MOST = 200


def targets(incomplete: str) -> list[tuple[str, str]]:
    """Saved targets with their addresses."""
    with contextlib.suppress(Exception):
        known = late.config.load().by_name
        return [(name, target.address) for name, target in known.items() if name.startswith(incomplete)]
    return []


def leases(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids and names of living leases with their states."""
    with contextlib.suppress(Exception):
        return [each for each in _leases(ctx) if each[0].startswith(incomplete)]
    return []


def pools(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of pools."""
    with contextlib.suppress(Exception), _client(ctx) as client:
        request = late.pool_pb2.ListPoolsRequest(namespace=ctx.params.get("namespace") or "")
        names = [pool.name for pool in client.once(client.pools.List, request).pools]
        return [name for name in names if name.startswith(incomplete)]
    return []


def _leases(ctx: typer.Context) -> Iterator[tuple[str, str]]:
    namespace = ctx.params.get("namespace") or ""
    request = late.lease_pb2.ListLeasesRequest(namespace=namespace, living_only=True, page_size=MOST)
    with _client(ctx) as client:
        for lease in client.once(client.leases.List, request).leases:
            said = late.render.state(lease)
            yield from ((name, f"{said}, {lease.id}") for name in lease.names)
            yield lease.id, said


def _client(ctx: typer.Context) -> late.client.Client:
    return late.client.Client(late.config.resolve(ctx.params.get("target")), timeout_s=PATIENCE_S)
