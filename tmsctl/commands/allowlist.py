"""The commands on the images that leases and pools may ask for."""

from __future__ import annotations

from typing import Annotated

import typer

from tmsctl import late, options, session

app = typer.Typer(no_args_is_help=True, help="Images that leases and pools may ask for.", rich_markup_mode=None)

ImageArgument = Annotated[
    str, typer.Argument(metavar="IMAGE", help="Image name; may end in * for all that begin so.", show_default=False)
]


@app.command()
@options.grouped
def add(image: ImageArgument, server: options.Server, printing: options.Printing) -> None:
    """Allow an image. Allowing it again changes nothing.

    Example: tmsctl allowlist add 'registry.example.com/triton:*'
    """
    with session.connect(server) as client:
        made = client.call(client.images.Allow, late.pool_pb2.AllowImageRequest(pattern=image))
    render = late.render
    render.out(render.answer(made, printing.output, table=render.images([made]), names=[made.pattern]))


@app.command("list")
@options.grouped
def list_(server: options.Server, printing: options.Printing) -> None:
    """List what is allowed, by the server's settings and by `add`."""
    with session.connect(server) as client:
        found = client.call(client.images.List, late.pool_pb2.ListImageRulesRequest())
    render = late.render
    names = [rule.pattern for rule in found.rules]
    render.out(render.answer(found, printing.output, table=render.images(found.rules), names=names))


@app.command()
@options.grouped
def remove(image: ImageArgument, server: options.Server, printing: options.Printing) -> None:
    """Allow an image no longer. Workers that run it already go on."""
    with session.connect(server) as client:
        gone = client.once(client.images.Forbid, late.pool_pb2.ForbidImageRequest(pattern=image))
    render = late.render
    render.out(render.answer(gone, printing.output, table=f"{image} is not allowed any more", names=[image]))
