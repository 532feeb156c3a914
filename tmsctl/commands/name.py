"""The commands on lease names: stable names that can be pointed at another lease in one step."""

from __future__ import annotations

from typing import Annotated

import typer

from tmsctl import late, options, session

app = typer.Typer(no_args_is_help=True, help="Stable names that point at leases.", rich_markup_mode=None)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="1 to 63 of a-z, 0-9 and -.", show_default=False)]


@app.command("set")
@options.grouped
def set_(name: NameArgument, lease: options.LeaseArgument, common: options.Common) -> None:
    """Create a name, or point it at another living lease; its endpoint stays the same."""
    namespace = common.namespace or ""
    with session.connect(common) as client:
        found = client.call(client.leases.Get, late.lease_pb2.GetLeaseRequest(lease=lease, namespace=namespace))
        request = late.lease_pb2.SetLeaseNameRequest(name=name, namespace=namespace, lease_id=found.id)
        made = client.call(client.names.Set, request)
    render = late.render
    render.out(render.answer(made, common.output, table=render.names([made]), names=[made.name]))


@app.command("list")
@options.grouped
def list_(common: options.Common) -> None:
    """List names with the leases that they point at."""
    with session.connect(common) as client:
        request = late.lease_pb2.ListLeaseNamesRequest(namespace=common.namespace or "")
        found = client.call(client.names.List, request)
    render = late.render
    names = [each.name for each in found.names]
    render.out(render.answer(found, common.output, table=render.names(found.names), names=names))


@app.command()
@options.grouped
def delete(name: NameArgument, common: options.Common) -> None:
    """Delete a name; its lease stays."""
    with session.connect(common) as client:
        request = late.lease_pb2.DeleteLeaseNameRequest(name=name, namespace=common.namespace or "")
        gone = client.once(client.names.Delete, request)
    render = late.render
    render.out(render.answer(gone, common.output, table=f"{name} is deleted", names=[name]))
