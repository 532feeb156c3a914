"""The page of tms-sidecar's flags, from its settings."""

from __future__ import annotations

from collections.abc import Iterator

from docs.pages import markdown
from sidecar import settings

_OPENING = (
    "tms-server starts a sidecar beside each worker; by hand it takes `--flag=value`, or a variable "
    f"`{settings.PREFIX}FLAG`. The table is generated from `sidecar/settings.py`."
)
_PROBES = """\
## The port for a pod's probes

With `--health-port` the sidecar answers `GET` over HTTP there, each with a status and a word of JSON:

| path | 200 | 503 |
| --- | --- | --- |
| `/livez` | the sidecar works | its work has ceased |
| `/startedz` | the worker has answered once | `NotStarted` |
| `/readyz` | clients may be sent to the worker: all that was wanted at one moment of this life of the worker is loaded or has failed for good, the server has said that clients are led here, and the worker, asked just now, holds what it should | with the reason: `ModelsNotLoaded`, `NotRouted`, `ModelsLost`, `WorkerUnavailable`, `WorkerRestricted`, `WorkerWedged`, `WorkerUnresponsive`, `Draining` |
| `/workerlivez` | the worker gets on, or has not begun yet | `WorkerWedged`: requests are in it and nothing has moved for `--wedged-after`; `WorkerUnresponsive`: it served once and has not answered for 15 s |
| `/drain?timeout_s=S` | no request has been in the worker for a second, or the bound (`--drain-timeout` unless given) is over; from the call on `/readyz` says `Draining`, until the worker is started anew | |

With `?patience_s=S` on `/startedz` and `/readyz` a no that may still become a yes is held back for so long: a pod is ready
when it is, not up to a second later. What has begun and fails is told at once.

What is wanted later never takes readiness back; a restart of the worker does, and it comes back once the worker is filled
again. A drain tells tms-worker to end each HTTP connection with its next answer; gRPC connections end at their age
(`--grpc-max-connection-age`), so give a drain more time than that, and the pod more than the drain.

A model that is not wanted any more is served on for `--model-stay`, then until it has stood idle for a second, at most
for `--drain-timeout`; its HTTP connections end with their next answer meanwhile.
"""

_RESTRICTED = """\
## Workers that restrict calls

A worker with `--grpc-restricted-protocol` or `--http-restricted-api`, or a Triton with the first, lets only those make a group's calls
who show a header. The sidecar needs health, statistics and model-repository over gRPC, and model-repository over HTTP to send clients
away. Give it the header and its value, one line for each header:

```
printf 'admin-key=%s\\n' "$SECRET" > headers
tms-worker  ... --grpc-restricted-protocol=health,statistics,model-repository:admin-key="$SECRET"
tms-sidecar ... --worker-headers-file=headers
```

Under local processes name the file with `TMS_SIDECAR_WORKER_HEADERS_FILE` in `workers.environment` of the server's settings; in pods give
the lines with `TMS_SIDECAR_WORKER_HEADERS` in the profile's `environment`. Values are never logged. Without the header, or with a
wrong value, models fail with `WorkerRestricted` and the remedy; they are tried anew when something else is wanted or the worker lets
the sidecar in again.
"""


def text() -> str:
    """All flags, and what the port for probes answers."""
    return "\n".join(["# Flags of tms-sidecar", "", _OPENING, "", *_flags(), "", _PROBES, _RESTRICTED]).rstrip() + "\n"


def _flags() -> Iterator[str]:
    yield from ("| flag | default | meaning |", "| --- | --- | --- |")
    for name, field in settings.Settings.model_fields.items():
        flag = name.replace("_", "-")
        default = "required" if field.is_required() else "" if field.default in {None, ""} else f"`{field.default}`"
        word = settings.METAVARS[flag]
        yield f"| `--{flag}={word}` | {default} | {markdown.cell(field.description or '')} |"
