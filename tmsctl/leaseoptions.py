"""Decides which options describe a lease; `lease create` and `run` share them."""

from __future__ import annotations

import dataclasses
import enum
import typing

import typer

from tmsctl import completion

MODELS_PANEL = "What is leased"
WHERE_PANEL = "Where it runs"
WORKER_PANEL = "Worker"
SCALING_PANEL = "How it grows"
TIMES_PANEL = "How long"


class Renewal(enum.StrEnum):
    """What keeps a lease alive past its hold."""

    ON_ACTIVITY = "on_activity"
    KEEPALIVE = "keepalive"
    MANUAL = "manual"


def _option(panel: str, *names: str, help_: str, metavar: str = "", least: int | None = None) -> typing.Any:
    shown = metavar or None
    return typer.Option(*names, help=help_, metavar=shown, min=least, rich_help_panel=panel, show_default=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """A worker as a dedicated lease or a pool describes it. None means not given."""

    command: typing.Annotated[
        str | None,
        _option(
            WORKER_PANEL, "--command", metavar="NAME", help_="Command on the server's allow-list, such as tms-worker."
        ),
    ] = None
    image: typing.Annotated[str | None, _option(WORKER_PANEL, "--image", metavar="IMAGE", help_="Container image.")] = (
        None
    )
    profile: typing.Annotated[
        str | None,
        _option(WORKER_PANEL, "--profile", metavar="NAME", help_="Pod shape that the administrator offers."),
    ] = None
    gpus: typing.Annotated[int | None, _option(WORKER_PANEL, "--gpus", metavar="NUMBER", help_="Whole GPUs.")] = None
    cpus: typing.Annotated[
        str | None, _option(WORKER_PANEL, "--cpus", metavar="NUMBER", help_="Processors, such as 2 or 0.5.")
    ] = None
    memory: typing.Annotated[
        str | None, _option(WORKER_PANEL, "--memory", metavar="SIZE", help_="Bytes for models, such as 8GiB.")
    ] = None

    @property
    def describes_worker(self) -> bool:
        """Whether any of them is given."""
        return any(each is not None for each in vars(self).values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeaseOptions:
    """As typed; `requests.build` reads them. None and False mean not given."""

    file: typing.Annotated[
        str | None,
        _option(
            MODELS_PANEL, "--file", "-f", metavar="FILE", help_="lease.yaml, or - for standard input; options win."
        ),
    ] = None
    model: typing.Annotated[
        list[str] | None,
        _option(
            MODELS_PANEL,
            "--model",
            "-m",
            metavar="MODEL",
            help_="NAME=URI or name=…,uri=…, then [,framework=…][,bytes=…][,config=@FILE]. Repeat it; models load in this order.",
        ),
    ] = None
    name: typing.Annotated[
        str | None, _option(MODELS_PANEL, "--name", metavar="NAME", help_="Stable name to point at the lease.")
    ] = None
    label: typing.Annotated[
        list[str] | None, _option(MODELS_PANEL, "--label", "-l", metavar="KEY=VALUE", help_="Label; repeat it.")
    ] = None
    parent: typing.Annotated[
        str | None, _option(MODELS_PANEL, "--parent", metavar="ID", help_="Id of a lease that this one ends with.")
    ] = None
    request_id: typing.Annotated[
        str | None,
        _option(
            MODELS_PANEL, "--request-id", metavar="TEXT", help_="The same id and options again answer the same lease."
        ),
    ] = None
    pool: typing.Annotated[
        str | None,
        typer.Option(
            "--pool",
            metavar="POOL",
            help="Pool of shared workers. Default: default.",
            autocompletion=completion.pools,
            rich_help_panel=WHERE_PANEL,
        ),
    ] = None
    dedicated: typing.Annotated[
        bool,
        _option(
            WHERE_PANEL,
            "--dedicated",
            help_="A worker for this lease alone, as --command, --image, --profile, --gpus, --cpus and --memory say.",
        ),
    ] = False
    replicas: typing.Annotated[
        int | None,
        _option(
            WHERE_PANEL, "--replicas", metavar="NUMBER", least=1, help_="Copies of a dedicated worker. Default: 1."
        ),
    ] = None
    min_replicas: typing.Annotated[
        int | None,
        _option(SCALING_PANEL, "--min-replicas", metavar="NUMBER", least=1, help_="Never fewer. Default: 1."),
    ] = None
    max_replicas: typing.Annotated[
        int | None,
        _option(
            SCALING_PANEL, "--max-replicas", metavar="NUMBER", help_="Never more; the lease grows when it is busy."
        ),
    ] = None
    scale_on: typing.Annotated[
        list[str] | None,
        _option(
            SCALING_PANEL,
            "--scale-on",
            metavar="KIND=TARGET",
            help_="in_flight=4, request_rate=50, queue_time=20ms, queue_ratio=0.5, latency=200ms@p95, "
            "gpu_utilization=80%, model_memory=8GiB. Repeat it. Default: in_flight=4.",
        ),
    ] = None
    priority: typing.Annotated[
        int | None,
        _option(
            WHERE_PANEL, "--priority", metavar="NUMBER", help_="-1000 to 1000; higher goes first when room is short."
        ),
    ] = None
    share_with: typing.Annotated[
        list[str] | None,
        _option(
            WHERE_PANEL,
            "--share-with",
            metavar="SELECTOR",
            help_="Only beside this lease id, name or key=value; repeat it.",
        ),
    ] = None
    not_with: typing.Annotated[
        list[str] | None,
        _option(WHERE_PANEL, "--not-with", metavar="SELECTOR", help_="Never beside this lease id, name or key=value."),
    ] = None
    exclusive: typing.Annotated[bool, _option(WHERE_PANEL, "--exclusive", help_="Shares its worker with nobody.")] = (
        False
    )
    hold: typing.Annotated[
        str | None,
        _option(TIMES_PANEL, "--hold", metavar="DURATION", help_="Least life, whatever the use. Default: 10m."),
    ] = None
    window: typing.Annotated[
        str | None,
        _option(
            TIMES_PANEL, "--window", metavar="DURATION", help_="An inference younger than this renews. Default: 10m."
        ),
    ] = None
    max_lifetime: typing.Annotated[
        str | None, _option(TIMES_PANEL, "--max-lifetime", metavar="DURATION", help_="Never longer. Default: no limit.")
    ] = None
    pending_timeout: typing.Annotated[
        str | None,
        _option(
            TIMES_PANEL, "--pending-timeout", metavar="DURATION", help_="Longest wait to become ACTIVE. Default: 1h."
        ),
    ] = None
    renewal: typing.Annotated[
        Renewal | None,
        _option(TIMES_PANEL, "--renewal", help_="What keeps it: use, keep-alive or only `lease renew`."),
    ] = None
