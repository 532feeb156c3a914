"""The commands on saved targets; they call no server."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Any

import typer

from tmsctl import completion, errors, late, options

app = typer.Typer(no_args_is_help=True, help="Servers that tmsctl knows by name.", rich_markup_mode=None)

TargetArgument = Annotated[
    str, typer.Argument(metavar="TARGET", help="Saved name.", autocompletion=completion.targets, show_default=False)
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tls:
    """How the connection is encrypted, if it is."""

    tls: Annotated[bool, typer.Option("--tls", help="Encrypt, and trust the system's authorities.")] = False
    ca: Annotated[str, typer.Option("--ca", metavar="FILE", help="Trust this authority (PEM).", show_default=False)] = (
        ""
    )
    cert: Annotated[
        str, typer.Option("--cert", metavar="FILE", help="Our certificate, for mutual TLS (PEM).", show_default=False)
    ] = ""
    key: Annotated[str, typer.Option("--key", metavar="FILE", help="Its private key (PEM).", show_default=False)] = ""


@app.command()
@options.grouped
def add(
    name: Annotated[str, typer.Argument(metavar="TARGET", help="Name to save it under.", show_default=False)],
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server's gRPC address.", show_default=False)],
    tls: Tls,
    *,
    use: Annotated[bool, typer.Option("--use", help="Make it the default target.")] = False,
    printing: options.Printing,
) -> None:
    """Save a server under a name; the first one becomes the default. TLS files are remembered by path, not copied."""
    config = late.config
    if bool(tls.cert) != bool(tls.key):
        raise errors.CliError("--cert and --key go together", code=errors.Exit.USAGE, field="--cert")
    files = {"ca": _file("--ca", tls.ca), "cert": _file("--cert", tls.cert), "key": _file("--key", tls.key)}
    target = config.Target(config.check_address(address), **files, tls=tls.tls)
    targets = config.load().with_target(config.check_name(name), target)
    if use or len(targets.by_name) == 1:
        targets = dataclasses.replace(targets, used=name)
    config.save(targets)
    _show(targets, [name], printing.output)


@app.command("list")
@options.grouped
def list_(printing: options.Printing) -> None:
    """List saved targets."""
    targets = late.config.load()
    _show(targets, list(targets.by_name), printing.output)


@app.command()
@options.grouped
def use(name: TargetArgument, printing: options.Printing) -> None:
    """Make a saved target the default."""
    targets = dataclasses.replace(_with(name), used=name)
    late.config.save(targets)
    _show(targets, [name], printing.output)


@app.command()
@options.grouped
def remove(name: TargetArgument, printing: options.Printing) -> None:
    """Forget a saved target."""
    targets = _with(name).without(name)
    late.config.save(targets)
    _show(targets, list(targets.by_name), printing.output)


def _with(name: str) -> late.config.Targets:
    targets = late.config.load()
    if name not in targets.by_name:
        known = ", ".join(targets.by_name) or "none"
        raise errors.CliError(
            f"there is no target {name!r}",
            code=errors.Exit.NOT_FOUND,
            field="TARGET",
            remedy=f"Saved targets: {known}.",
        )
    return targets


def _file(option: str, given: str) -> str:
    if given and not pathlib.Path(given).is_file():
        raise errors.CliError(f"{given} is no file", code=errors.Exit.USAGE, field=option)
    return str(pathlib.Path(given).absolute()) if given else ""


def _show(targets: late.config.Targets, names: list[str], output: options.Output) -> None:
    render = late.render
    if output is options.Output.NAME:
        render.out("\n".join(names))
        return
    entries = [_entry(targets, name) for name in names]
    if output is not options.Output.TABLE:
        render.out(render.structured({"targets": entries}, output))
        return
    headers = ("USED", "NAME", "ADDRESS", "TLS", "CA", "CERT")
    rows = [
        ("*" if e["used"] else " ", e["name"], e["address"], "yes" if e["tls"] else "no", e["ca"], e["cert"])
        for e in entries
    ]
    render.out(render.table(headers, rows))


def _entry(targets: late.config.Targets, name: str) -> dict[str, Any]:
    target = targets.by_name[name]
    return {"name": name, "used": name == targets.used, **dataclasses.asdict(target), "tls": target.encrypted}
