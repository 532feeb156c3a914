"""The commands on workers."""

from __future__ import annotations

from typing import Annotated

import typer

from tmsctl import completion, late, options, session

app = typer.Typer(no_args_is_help=True, help="The inference servers that hold leases.", rich_markup_mode=None)


@app.callback()
def workers() -> None:
    """The inference servers that hold leases."""


@app.command("list")
@options.grouped
def list_(
    *,
    pool: Annotated[
        str,
        typer.Option(
            "--pool",
            metavar="POOL",
            help="Only workers of this pool.",
            autocompletion=completion.pools,
            show_default=False,
        ),
    ] = "",
    wide: Annotated[bool, typer.Option("--replicas", help="One line for each replica, with its node and trouble.")] = (
        False
    ),
    common: options.Common,
) -> None:
    """List workers with what they hold."""
    with session.connect(common) as client:
        request = late.pool_pb2.ListWorkersRequest(namespace=common.namespace or "", pool=pool)
        found = client.call(client.workers.List, request)
    render = late.render
    names = [worker.id for worker in found.workers]
    table = render.replicas(found.workers) if wide else render.workers(found.workers)
    render.out(render.answer(found, common.output, table=table, names=names))
