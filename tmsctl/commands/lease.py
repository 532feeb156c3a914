"""The commands on leases."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from tmsctl import errors, late, leaseoptions, options, session

app = typer.Typer(no_args_is_help=True, help="Create, follow and end leases.", rich_markup_mode=None)

WaitTimeout = Annotated[
    str | None, typer.Option("--wait-timeout", metavar="DURATION", help="With --wait: give up waiting, not the lease.")
]
LabelFilter = Annotated[
    list[str] | None, typer.Option("--label", "-l", metavar="KEY=VALUE", help="Only leases with this label; repeat it.")
]


@app.command()
@options.grouped
def create(
    lease: leaseoptions.LeaseOptions,
    worker: leaseoptions.WorkerOptions,
    wait_timeout: WaitTimeout = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and explain; store nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is ACTIVE, with progress on stderr.")] = False,
    common: options.Common,
) -> None:
    """Lease models: keep them loaded together while they are used.

    Example: tmsctl lease create --model digits=model://examples/digits --name digits --wait
    """
    within_s = session.seconds("--wait-timeout", wait_timeout) if wait_timeout else None
    if dry_run and wait:
        raise errors.CliError("a dry run stores nothing to wait for", code=errors.Exit.USAGE, field="--wait")
    request = late.requests.build(lease, worker, common.namespace)
    request.dry_run = dry_run
    with session.connect(common) as client:
        made = client.call(client.leases.Create, request)
        if wait:
            with late.progress.reporter() as reporter:
                made = late.follow.until_active(client, made, reporter, within_s)
    _show(made, common.output)
    if dry_run and late.render.reason(made) == "CannotFit":
        raise typer.Exit(errors.Exit.NO_CAPACITY)


@app.command()
@options.grouped
def renew(
    lease: options.LeaseArgument,
    *,
    for_: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="From now. Default: the lease's hold.")
    ] = None,
    allow_shorten: Annotated[bool, typer.Option("--allow-shorten", help="The end may come nearer.")] = False,
    common: options.Common,
) -> None:
    """Move a lease's end, counted from now."""
    request = late.lease_pb2.RenewLeaseRequest(
        lease=lease, namespace=common.namespace or "", allow_shorten=allow_shorten
    )
    if for_ is not None:
        request.duration.CopyFrom(late.requests.duration("--for", for_))
    with session.connect(common) as client:
        answer = client.call(client.leases.Renew, request)
    render = late.render
    table = f"{answer.lease.id} ends in {render.span(answer.expires.remaining)}, at {render.instant(answer.expires.at)}"
    render.out(render.answer(answer, common.output, table=table, names=[answer.lease.id]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which leases to end, beside those that are named."""

    label: LabelFilter = None
    all_: Annotated[bool, typer.Option("--all", help="Every living lease of the namespace.")] = False
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before ending what --label or --all choose.")] = (
        False
    )


@app.command()
@options.grouped
def release(
    chosen: Chosen,
    *,
    leases: options.LeaseArguments = None,
    message: Annotated[
        str, typer.Option("--message", metavar="TEXT", help="Kept with the lease's end.", show_default=False)
    ] = "",
    common: options.Common,
) -> None:
    """End leases: requests in flight finish, then the models unload. Ending an ended lease changes nothing."""
    if bool(leases) == bool(chosen.label or chosen.all_):
        raise errors.CliError("name leases, or choose them by --label or --all", code=errors.Exit.USAGE, field="LEASE")
    namespace = common.namespace or ""
    with session.connect(common) as client:
        wanted = leases or _choose(client, namespace, chosen)
        ended = late.lease_pb2.ListLeasesResponse()
        problems = []
        for each in wanted:
            request = late.lease_pb2.ReleaseLeaseRequest(lease=each, namespace=namespace, message=message)
            try:
                ended.leases.append(client.call(client.leases.Release, request))
            except errors.CliError as problem:
                problems.append(_about(each, problem))
    _show_several(ended, common.output)
    _raise_all(problems)


@app.command()
@options.grouped
def get(lease: options.LeaseArgument, common: options.Common) -> None:
    """Show one lease on one line; ended leases are kept."""
    found = _get(lease, common)
    render = late.render
    render.out(render.answer(found, common.output, table=render.leases([found]), names=[found.id]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filter:
    """Which leases to list."""

    state: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="Only these, such as active; repeat it.")
    ] = None
    label: LabelFilter = None
    pool: Annotated[
        str, typer.Option("--pool", metavar="POOL", help="Only leases of this pool.", show_default=False)
    ] = ""
    all_: Annotated[bool, typer.Option("--all", "-a", help="The ended ones too.")] = False


@app.command("list")
@options.grouped
def list_(which: Filter, common: options.Common) -> None:
    """List leases, newest first: the living ones unless --all or --state says otherwise."""
    request = late.lease_pb2.ListLeasesRequest(
        namespace=common.namespace or "",
        states=[_state(word) for word in which.state or ()],
        labels=late.requests.parsed("--label", which.label or [], late.values.parse_labels),
        pool=which.pool,
        living_only=not (which.all_ or which.state),
    )
    with session.connect(common) as client:
        found = late.lease_pb2.ListLeasesResponse(leases=client.leases_matching(request))
    _show_several(found, common.output)


@app.command()
@options.grouped
def watch(
    *,
    leases: options.LeaseArguments = None,
    after_revision: Annotated[
        int, typer.Option("--after-revision", metavar="REVISION", min=0, help="Only later changes.")
    ] = 0,
    common: options.Common,
) -> None:
    """Print every change, one a line (json: one object a line), beginning with the present state.

    Ends when all the leases named have ended; without names only Ctrl-C ends it.
    """
    request = late.lease_pb2.WatchLeasesRequest(
        namespace=common.namespace or "", leases=leases or [], after_revision=after_revision
    )
    render = late.render
    with session.connect(common) as client:
        for update in client.watch(request):
            table = late.progress.watched(update.lease)
            render.out(render.line(update, common.output, table=table, name=update.lease.id))


@app.command()
@options.grouped
def status(lease: options.LeaseArgument, common: options.Common) -> None:
    """Show everything about one lease: models, conditions, endpoint, end."""
    _show(_get(lease, common), common.output)


@app.command()
@options.grouped
def explain(lease: options.LeaseArgument, common: options.Common) -> None:
    """Say why a lease is where it is: each worker with the rule that refuses it and the bytes that are missing."""
    request = late.lease_pb2.ExplainLeaseRequest(lease=lease, namespace=common.namespace or "")
    with session.connect(common) as client:
        said = client.call(client.leases.Explain, request)
    render = late.render
    workers = [verdict.worker_group for verdict in said.workers]
    render.out(render.answer(said, common.output, table=render.explanation(said), names=workers))


@app.command()
@options.grouped
def events(lease: options.LeaseArgument, common: options.Common) -> None:
    """Print a lease's history, oldest first."""
    request = late.lease_pb2.ListEventsRequest(lease=lease, namespace=common.namespace or "")
    with session.connect(common) as client:
        said = client.call(client.leases.ListEvents, request)
    render = late.render
    revisions = [str(event.revision) for event in said.events]
    render.out(render.answer(said, common.output, table=render.events(said.events), names=revisions))


@app.command()
@options.grouped
def logs(
    lease: options.LeaseArgument,
    *,
    tail: Annotated[int, typer.Option("--tail", metavar="LINES", min=1, help="Last lines to begin with.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
    common: options.Common,
) -> None:
    """Print what the workers that hold a lease have logged."""
    request = late.lease_pb2.LeaseLogsRequest(
        lease=lease, namespace=common.namespace or "", tail=late.requests.within_32_bits("--tail", tail), follow=follow
    )
    render = late.render
    with session.connect(common) as client:
        for said in client.stream(client.leases.Logs, request, endless=follow):
            text = f"{said.worker}/{said.source}  {late.values.clean(said.text)}"
            render.out(render.line(said, common.output, table=text, name=said.worker))


def _get(lease: str, common: options.Common) -> late.lease_pb2.Lease:
    request = late.lease_pb2.GetLeaseRequest(lease=lease, namespace=common.namespace or "")
    with session.connect(common) as client:
        return client.call(client.leases.Get, request)


def _show(lease: late.lease_pb2.Lease, output: options.Output) -> None:
    render = late.render
    render.out(render.answer(lease, output, table=render.lease(lease), names=[lease.id]))


def _show_several(found: late.lease_pb2.ListLeasesResponse, output: options.Output) -> None:
    render = late.render
    names = [lease.id for lease in found.leases]
    render.out(render.answer(found, output, table=render.leases(found.leases), names=names))


def _state(word: str) -> late.lease_pb2.LeaseState.ValueType:
    known = {name.removeprefix("LEASE_STATE_"): number for name, number in late.lease_pb2.LeaseState.items() if number}
    late.requests.parsed("--state", word.upper(), _knows(known))
    return known[word.upper()]


def _knows(known: dict[str, late.lease_pb2.LeaseState.ValueType]) -> Callable[[str], None]:
    return lambda word: late.values.require_known(word, known)


def _choose(client: late.client.Client, namespace: str, chosen: Chosen) -> list[str]:
    labels = late.requests.parsed("--label", chosen.label or [], late.values.parse_labels)
    request = late.lease_pb2.ListLeasesRequest(namespace=namespace, labels=labels, living_only=True)
    found = [lease.id for lease in client.leases_matching(request)]
    if not found or chosen.yes:
        return found
    if not sys.stdin.isatty():
        remedy = f"Add --yes to end these {len(found)} leases."
        raise errors.CliError("nobody is here to be asked", code=errors.Exit.USAGE, field="--yes", remedy=remedy)
    typer.confirm(f"End {len(found)} leases ({', '.join(found)})?", abort=True, err=True)
    return found


def _about(lease: str, problem: errors.CliError) -> errors.CliError:
    return errors.CliError(problem.message, code=problem.code, field=problem.field or lease, remedy=problem.remedy)


def _raise_all(problems: list[errors.CliError]) -> None:
    if problems:
        first, *others = problems
        more = [line for problem in others for line in problem.lines()]
        first.remedy = "\n".join(filter(None, [first.remedy, *more]))
        raise first
