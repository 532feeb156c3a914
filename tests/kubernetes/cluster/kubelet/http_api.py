"""What the API server asks of a node: the logs of containers. HTTPS on each node's address, for those with a
certificate of the cluster's authority only."""

from __future__ import annotations

import contextlib
import pathlib
import ssl

from aiohttp import web

from tests.kubernetes.cluster import layout as layouts
from tests.kubernetes.cluster.kubelet import containers, fleet, machines, times

_FOLLOW_S = 0.05
_CHUNK_BYTES = 1 << 16
_UNSUPPORTED = ("sinceSeconds", "sinceTime", "timestamps")


async def serve(served: fleet.Fleet, layout: layouts.Layout) -> web.AppRunner:
    """Listens for all nodes; clean the runner up to end it."""
    application = web.Application()
    application["fleet"] = served
    application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", _logs)
    application.router.add_get("/healthz", _healthz)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    for machine in served.machines.values():
        await web.TCPSite(runner, machine.shape.address, machines.PORT, ssl_context=_tls(layout)).start()
    return runner


def _tls(layout: layouts.Layout) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(layout.certificate("ca")))
    context.load_cert_chain(layout.certificate("kubelet-server"), layout.key("kubelet-server"))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def _healthz(_request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _logs(request: web.Request) -> web.StreamResponse:
    if asked := [name for name in _UNSUPPORTED if request.query.get(name) not in {None, "false"}]:
        return web.Response(status=400, text=f"{asked[0]}: this kubelet keeps no times of log lines; leave it out\n")
    key = f"{request.match_info['namespace']}/{request.match_info['pod']}"
    try:
        container = request.app["fleet"].container(key, request.match_info["container"])
    except fleet.NotHereError as error:
        return web.Response(status=404, text=f"{error}\n")
    await request.app["fleet"].pod(key).machine.present.wait()
    path = _file(container, previous=request.query.get("previous") == "true")
    if not path.exists():
        name = container.view.name
        return web.Response(status=400, text=f'container "{name}" in pod "{key}" is waiting to start or has no log\n')
    return await _send(request, container, path)


def _file(container: containers.Container, *, previous: bool) -> pathlib.Path:
    current = container.log_path
    number = int(current.parent.name)
    if previous or not current.exists():  # while it waits for a restart, the last run's is shown
        return current.parent.with_name(str(number - 1)) / current.name
    return current


async def _send(request: web.Request, container: containers.Container, path: pathlib.Path) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    limit_bytes = int(request.query.get("limitBytes", 1 << 40))
    process = container.process if request.query.get("follow") == "true" else None
    with path.open("rb") as file, contextlib.suppress(ConnectionError):
        file.seek(_tail_start(path, request.query.get("tailLines")))
        while limit_bytes > 0:
            ended = process is None or container.process is not process
            if piece := file.read(min(_CHUNK_BYTES, limit_bytes)):
                limit_bytes -= len(piece)
                await response.write(piece)
            elif ended:
                break
            else:
                await times.pause(_FOLLOW_S)
        await response.write_eof()
    return response


def _tail_start(path: pathlib.Path, tail_lines: str | None) -> int:
    """Where the last lines begin, looking at no more than the last megabytes."""
    if tail_lines is None:
        return 0
    size = path.stat().st_size
    start = max(0, size - (4 << 20))
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(size - start)
    lines = content.splitlines(keepends=True)
    kept = lines[len(lines) - int(tail_lines) :] if int(tail_lines) < len(lines) else lines
    return size - sum(map(len, kept))
