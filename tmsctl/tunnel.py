"""Decides how local connections reach a lease through the server: one call of its Tunnel method for each of them.

For people who cannot reach the workers, as from outside of a cluster. Everything ends with `close`; nothing is retried,
for a connection that broke cannot be resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping

import grpc

from protos.tms.v1 import lease_pb2
from tmsctl import client, errors

CHUNK_BYTES = 64 * 1024
MOST_CONNECTIONS = 256
PORTS: Mapping[str, lease_pb2.TunnelPort.ValueType] = {
    "http": lease_pb2.TUNNEL_PORT_HTTP,
    "grpc": lease_pb2.TUNNEL_PORT_GRPC,
    "metrics": lease_pb2.TUNNEL_PORT_METRICS,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Which lease, and which local port leads to which of its ports; 0 takes a free one."""

    lease: str
    namespace: str
    address: str
    ports: Mapping[str, int]
    note: Callable[[str], None]


class Tunnels:
    """Listens until closed. `bound` has the port of each listener."""

    def __init__(self, over: client.Client, plan: Plan) -> None:
        self._client = over
        self._plan = plan
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._closing = threading.Event()
        self._problems: queue.SimpleQueue[errors.CliError] = queue.SimpleQueue()
        self._listeners: dict[str, socket.socket] = {}
        try:
            for port, number in plan.ports.items():
                self._listeners[port] = _listen(plan.address, port, number)
        except errors.CliError:
            self.close()
            raise
        self.bound = {port: listener.getsockname()[1] for port, listener in self._listeners.items()}
        for port, listener in self._listeners.items():
            threading.Thread(target=self._accept, args=(listener, PORTS[port]), daemon=True).start()

    def wait(self) -> None:
        """Serves until interrupted; raises what the server has against the lease."""
        raise self._problems.get()

    def close(self) -> None:
        """Takes no more connections; those that are open end with the client."""
        self._closing.set()
        for listener in self._listeners.values():
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket, port: lease_pb2.TunnelPort.ValueType) -> None:
        while not self._closing.is_set():
            self._free.acquire()
            try:
                connection, _ = listener.accept()
            except OSError as problem:
                if not self._closing.is_set():
                    self._problems.put(errors.CliError(f"connections are accepted no more: {problem}"))
                return
            threading.Thread(target=self._carry, args=(connection, port), daemon=True).start()

    def _carry(self, connection: socket.socket, port: lease_pb2.TunnelPort.ValueType) -> None:
        opened = lease_pb2.TunnelOpen(lease=self._plan.lease, namespace=self._plan.namespace, port=port)
        call = self._client.leases.Tunnel(_sent(opened, connection))
        try:
            for said in call:
                connection.sendall(said.data)
            connection.shutdown(socket.SHUT_WR)
        except grpc.RpcError as error:
            self._tell(errors.from_rpc(error, self._client.address))
        except OSError:
            pass
        finally:
            call.cancel()
            # Wakes the thread that reads from it, which closing alone would not.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
            self._free.release()

    def _tell(self, problem: errors.CliError) -> None:
        if self._closing.is_set() or self._client.closing:
            return
        if problem.code in {errors.Exit.NOT_FOUND, errors.Exit.PRECONDITION}:
            self._problems.put(problem)
        else:
            self._plan.note(problem.message)


def _sent(opened: lease_pb2.TunnelOpen, connection: socket.socket) -> Iterator[lease_pb2.TunnelRequest]:
    yield lease_pb2.TunnelRequest(open=opened)
    with contextlib.suppress(OSError):
        while read := connection.recv(CHUNK_BYTES):
            yield lease_pb2.TunnelRequest(data=lease_pb2.TunnelData(data=read))


def _listen(address: str, port: str, number: int) -> socket.socket:
    try:
        return socket.create_server((address, number))
    except (OSError, OverflowError) as problem:
        message = f"cannot listen on {address}:{number}: {problem}"
        remedy = "Choose another port, or 0 for a free one."
        raise errors.CliError(message, code=errors.Exit.USAGE, field=f"--{port}", remedy=remedy) from None
