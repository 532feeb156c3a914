"""Decides how the commands hang together: the one place that knows all of them."""

from __future__ import annotations

import importlib.metadata
import os
import typing

import typer

from tmsctl import errors, late, options
from tmsctl.commands import allowlist, connect, lease, name, pool, run, target, worker

_CODES = "\n".join(f"  {code.value:<4} {meaning}" for code, meaning in errors.MEANINGS.items())

HELP = f"""Lease models: keep them loaded together, with room of their own, while they are used.

\b
A first lease:
  tmsctl lease create --model digits=model://examples/digits --name digits --wait
  tmsctl lease status digits

\b
Exit codes:
{_CODES}

\b
Environment: TMS_TARGET, TMS_NAMESPACE, TMS_TIMEOUT stand for their options; TMS_DEBUG=1 shows tracebacks.
"""

app = typer.Typer(
    name="tmsctl",
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 120},
)
lease.app.add_typer(name.app, name="name")
lease.app.command("connect")(connect.connect)
app.add_typer(lease.app, name="lease")
app.add_typer(pool.app, name="pool")
app.add_typer(worker.app, name="worker")
app.add_typer(allowlist.app, name="allowlist")
app.add_typer(target.app, name="target")
app.command("run", context_settings={"allow_interspersed_args": False})(run.run)


@app.callback()
def before(
    target: typing.Annotated[
        str | None, typer.Option("--target", "-t", metavar="TARGET", help="The same as after the command.")
    ] = None,
    namespace: typing.Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NAME", help="The same as after the command.")
    ] = None,
) -> None:
    """Takes what people write before the command; what stands after it wins, as it does over the environment."""
    for variable, value in (("TMS_TARGET", target), ("TMS_NAMESPACE", namespace)):
        if value is not None:
            os.environ[variable] = value


@app.command()
@options.grouped
def version(printing: options.Printing) -> None:
    """Print the version of tmsctl."""
    number = importlib.metadata.version("tms")
    if printing.output in {options.Output.TABLE, options.Output.NAME}:
        late.render.out(number)
    else:
        late.render.out(late.render.structured({"version": number}, printing.output))
