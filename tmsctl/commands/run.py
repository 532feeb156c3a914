"""The command `run`: a lease around another command."""

from __future__ import annotations

import os
import shutil
from typing import Annotated

import typer

from tmsctl import errors, late, leaseoptions, options, session


@options.grouped
def run(
    lease: leaseoptions.LeaseOptions,
    worker: leaseoptions.WorkerOptions,
    words: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run.", show_default=False)],
    *,
    wait_timeout: Annotated[
        str | None, typer.Option("--wait-timeout", metavar="DURATION", help="Longest wait for the lease.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    scope: options.Scope,
) -> None:
    """Lease models, run a command while they are served, release them. Made for CI.

    Example: tmsctl run --model digits=model://examples/digits -- pytest tests/inference

    The command finds the lease in TMS_LEASE_ID, TMS_HTTP_URL (http://HOST:PORT), TMS_HTTP_ADDRESS and TMS_GRPC_URL
    (both HOST:PORT) and TMS_METRICS_URL. Signals are forwarded to it. The lease is kept alive meanwhile (renewal
    keepalive and a hold of 2m unless said otherwise) and always released.

    The exit code is the command's, or 128+N when signal N ended it; 126 and 127 when it cannot be run or found. When the
    lease itself fails it is 200 plus the exit code listed by `tmsctl --help`, such as 206 for no room; a lease that is
    lost ends the command with SIGTERM.
    """
    request = late.requests.build(lease, worker, scope.namespace)
    late.running.keep(request)
    within_s = session.seconds("--wait-timeout", wait_timeout) if wait_timeout else None
    _require_program(words[0])
    plan = late.running.Plan(
        request=request,
        command=words,
        environment=_environment(scope),
        connect=lambda: session.connect(scope),
        reporter=late.progress.Silence if quiet else late.progress.reporter,
        note=session.note,
        within_s=within_s,
    )
    raise typer.Exit(late.running.run(plan))


def _require_program(name: str) -> None:
    if shutil.which(name) is None:
        found = shutil.which(name, mode=os.F_OK) is not None
        said = "cannot be executed" if found else "is not found"
        raise errors.CliError(f"{name} {said}; nothing was leased", code=126 if found else 127, field="COMMAND")


def _environment(scope: options.Scope) -> dict[str, str]:
    # Calls of tmsctl inside the command go where this one goes.
    given = {"TMS_TARGET": scope.target, "TMS_NAMESPACE": scope.namespace}
    return {**os.environ, **{key: value for key, value in given.items() if value}}
