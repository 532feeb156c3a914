"""The page of tms-worker's flags, from the table that parses them."""

from __future__ import annotations

from collections.abc import Iterator

from docs.pages import markdown
from gpu_worker import flags, metrics

_LEAVING = """\
## Leaving

`POST /v2/repository/models/NAME/leave` (with the control token, where there is one) sends the clients of a model elsewhere
before it is unloaded: it serves as before, each answer ends its connection (`Connection: close`), and connections that
stay idle for a second are closed, until the model is loaded again. `POST /v2/repository/leave` does so for all. An unload
and a signal to stop begin with it; what clients ask before they have heard of it is still answered. Over gRPC they hear of it by GOAWAY,
in two steps, and lose no call (`docs/grpc-front.md`). Only with `--grpc-frontend=grpcio` connections end at their age alone: without
`--grpc-max-connection-age` a call that arrives in the very moment of stopping can be cancelled.
"""


def text() -> str:
    """What is acted on, what is ignored with a notice, what is refused."""
    opening = (
        "tms-worker takes Triton's flags by their names, as `--flag=value` or `--flag value`. The tables are generated "
        "from `gpu_worker/flags.py`."
    )
    lines = ["# Flags of tms-worker", "", opening, ""]
    for title, group in flags.GROUPS:
        lines += [f"## {title}", "", *_acted_on(group)]
    lines += ["## Accepted, and ignored with a notice in the log", "", *_ignored()]
    lines += [
        "## Refused at the start",
        "",
        "They would change what the server does, and this version does not do it. A value that turns off what is not there is fine.",
        "",
        *_refused(),
    ]
    lines += ["## Metrics", "", *_metrics()]
    lines += ["", _LEAVING]
    return "\n".join(lines).rstrip() + "\n"


def _acted_on(group: tuple[flags.Flag, ...]) -> Iterator[str]:
    yield from ("| flag | default | meaning |", "| --- | --- | --- |")
    for flag in group:
        names = ", ".join(f"`--{name}`" for name in (flag.name, *flag.aliases))
        default = "" if flag.default in (None, "", ()) else f"`{str(flag.default).lower()}`"
        yield f"| {names} | {default} | {markdown.cell(flag.help)} |"
    yield ""


def _metrics() -> Iterator[str]:
    yield "Of each model and version, beside the readings of CPU, memory and NVIDIA GPUs, at `/metrics` of the metrics port:"
    yield from ("", "| metric | type | meaning |", "| --- | --- | --- |")
    for name, kind, words, _value in (*metrics.PER_MODEL, *metrics.PER_CACHED_MODEL):
        yield f"| `{name}` | {kind} | {markdown.cell(words)} |"
    yield f"| `nv_inference_request_failure` | counter | {metrics.FAILURE_WORDS}, by reason |"
    yield f"| `{metrics.LATENCY}` | histogram | {metrics.LATENCY_WORDS} |"
    yield f"| `{metrics.FIRST_RESPONSE}` | histogram | {metrics.FIRST_RESPONSE_WORDS} (`histogram_latencies`) |"
    for name, words in metrics.SUMMARIES.items():
        yield f"| `nv_inference_{name}_summary_us` | summary | {words}; quantiles of the last minute (`summary_latencies`) |"


def _ignored() -> Iterator[str]:
    yield from ("| flag | why it changes nothing |", "| --- | --- |")
    yield from (f"| `--{name}` | {markdown.cell(why)} |" for name, why in flags.IGNORED.items())
    yield ""


def _refused() -> Iterator[str]:
    yield from ("| flag | why |", "| --- | --- |")
    yield from (f"| `--{name}` | {markdown.cell(why)} |" for name, why in flags.REFUSED.items())
    yield ""
