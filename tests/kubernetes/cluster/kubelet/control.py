"""The kubelet's half of its control socket: one line of JSON in, one out, `{"result", "error"}`."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import json
import pathlib

from tests.kubernetes.cluster.kubelet import containers, fleet, kube, processes

_PROCESSES = {"killed", "frozen", "running"}


class Control:
    """Does to a fleet what a test orders."""

    def __init__(self, controlled: fleet.Fleet) -> None:
        self._fleet = controlled
        self._actions: dict[str, collections.abc.Callable[[kube.Json], object]] = {
            "lose_node": self._lose_node,
            "restore_node": lambda order: controlled.restore_node(order["node"]),
            "kill_container": self._kill,
            "freeze_container": lambda order: self._process(order).freeze(),
            "thaw_container": lambda order: self._process(order).thaw(),
            "container_pid": lambda order: self._process(order).pid,
            "fail_pull": lambda order: controlled.tools.images.fail(order["image"], order["message"]),
            "mend_pull": self._mend_pull,
            "register_image": self._register,
            "hold_readiness": lambda order: controlled.hold_readiness(order["pod"], held=order["held"]),
            "evict": lambda order: controlled.evict(order["pod"], order["message"]),
            "pods": lambda order: controlled.keys(),
        }

    async def listen(self, path: pathlib.Path) -> asyncio.Server:
        """Listens at `path`, where nothing may lie."""
        return await asyncio.start_unix_server(self._serve, path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(json.dumps(self._act(await reader.readline())).encode() + b"\n")
            await writer.drain()
        writer.close()

    def _act(self, line: bytes) -> kube.Json:
        try:
            order = json.loads(line)
            return {"result": self._actions[order["action"]](order), "error": None}
        except fleet.NotHereError as error:
            return {"result": None, "error": str(error)}
        except (ValueError, TypeError, KeyError) as error:
            return {"result": None, "error": f"not an order that this kubelet knows: {error!r}"}

    def _lose_node(self, order: kube.Json) -> None:
        if order["processes"] not in _PROCESSES:
            raise ValueError(f"processes: {order['processes']!r} is none of {sorted(_PROCESSES)}")
        self._fleet.lose_node(order["node"], order["processes"])

    def _kill(self, order: kube.Json) -> None:
        container = self._container(order)
        process = self._process(order)
        container.end_reason = order["reason"]
        process.kill()

    def _mend_pull(self, order: kube.Json) -> None:
        self._fleet.tools.images.mend(order["image"])
        self._fleet.retry_now()

    def _register(self, order: kube.Json) -> None:
        self._fleet.tools.images.register(order["image"], order["command"])
        self._fleet.retry_now()

    def _container(self, order: kube.Json) -> containers.Container:
        return self._fleet.container(order["pod"], order["container"])

    def _process(self, order: kube.Json) -> processes.Process:
        process = self._container(order).process
        if process is None:
            raise fleet.NotHereError(f"container {order['container']} of pod {order['pod']} does not run")
        return process
