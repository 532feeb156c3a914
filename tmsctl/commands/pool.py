"""The commands on pools."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tmsctl import completion, late, leaseoptions, options, session

app = typer.Typer(no_args_is_help=True, help="Pools of alike workers that leases share.", rich_markup_mode=None)

PoolArgument = Annotated[
    str, typer.Argument(metavar="POOL", help="Pool name.", autocompletion=completion.pools, show_default=False)
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How many workers a pool has. None means not given."""

    min_workers: Annotated[
        int | None, typer.Option("--min-workers", metavar="NUMBER", min=0, help="Kept even when empty. Default: 0.")
    ] = None
    max_workers: Annotated[
        int | None, typer.Option("--max-workers", metavar="NUMBER", min=1, help="Never more. Default: 4.")
    ] = None
    idle_linger: Annotated[
        str | None,
        typer.Option("--idle-linger", metavar="DURATION", help="How long an empty worker is kept. Default: 0s."),
    ] = None


@app.command()
@options.grouped
def create(name: PoolArgument, worker: leaseoptions.WorkerOptions, size: Size, common: options.Common) -> None:
    """Create a pool; the same definition again answers the pool that is there.

    Example: tmsctl pool create small --command tms-worker --memory 512MiB --max-workers 2
    """
    spec = late.pool_pb2.PoolSpec(min_workers=0, max_workers=4)
    _describe(spec, worker, size)
    request = late.pool_pb2.CreatePoolRequest(name=name, namespace=common.namespace or "", spec=spec)
    with session.connect(common) as client:
        _show(client.call(client.pools.Create, request), common.output)


@app.command()
@options.grouped
def update(name: PoolArgument, worker: leaseoptions.WorkerOptions, size: Size, common: options.Common) -> None:
    """Change what is given, and keep the rest. Workers are brought to it one after the other while leases serve.

    Example: tmsctl pool update small --image registry.example.com/tms-worker:2
    """
    scope = {"name": name, "namespace": common.namespace or ""}
    with session.connect(common) as client:
        spec = client.call(client.pools.Get, late.pool_pb2.GetPoolRequest(**scope)).spec
        _describe(spec, worker, size)
        _show(client.call(client.pools.Update, late.pool_pb2.UpdatePoolRequest(**scope, spec=spec)), common.output)


@app.command("list")
@options.grouped
def list_(common: options.Common) -> None:
    """List pools."""
    with session.connect(common) as client:
        request = late.pool_pb2.ListPoolsRequest(namespace=common.namespace or "")
        found = client.call(client.pools.List, request)
    render = late.render
    names = [pool.name for pool in found.pools]
    render.out(render.answer(found, common.output, table=render.pools(found.pools), names=names))


@app.command()
@options.grouped
def get(name: PoolArgument, common: options.Common) -> None:
    """Show one pool."""
    with session.connect(common) as client:
        request = late.pool_pb2.GetPoolRequest(name=name, namespace=common.namespace or "")
        _show(client.call(client.pools.Get, request), common.output)


@app.command()
@options.grouped
def delete(
    name: PoolArgument,
    *,
    revoke_leases: Annotated[bool, typer.Option("--revoke-leases", help="End the leases that live in it.")] = False,
    common: options.Common,
) -> None:
    """Delete a pool; refused while leases live in it."""
    with session.connect(common) as client:
        request = late.pool_pb2.DeletePoolRequest(
            name=name, namespace=common.namespace or "", revoke_leases=revoke_leases
        )
        gone = client.once(client.pools.Delete, request)
    render = late.render
    render.out(render.answer(gone, common.output, table=f"{name} is deleted", names=[name]))


def _describe(spec: late.pool_pb2.PoolSpec, worker: leaseoptions.WorkerOptions, size: Size) -> None:
    requests = late.requests
    requests.describe(spec.worker, worker)
    if size.min_workers is not None:
        spec.min_workers = requests.within_32_bits("--min-workers", size.min_workers)
    if size.max_workers is not None:
        spec.max_workers = requests.within_32_bits("--max-workers", size.max_workers)
    if size.idle_linger is not None:
        spec.idle_worker_linger.CopyFrom(requests.duration("--idle-linger", size.idle_linger))


def _show(pool: late.pool_pb2.Pool, output: options.Output) -> None:
    render = late.render
    render.out(render.answer(pool, output, table=render.pools([pool]), names=[pool.name]))
