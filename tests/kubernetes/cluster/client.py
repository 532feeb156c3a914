"""The running cluster as a test sees it: where it is, who its users are, and its programs to stop and start."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import socket
import ssl

from tests.kubernetes.cluster import layout as layouts

VARIABLE = "TMS_CLUSTER"
API_SERVER = "kube-apiserver"
_ORDER_LIMIT_S = 90.0
_GET_LIMIT_S = 30.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the API server answered."""

    status: int
    body: bytes


class OrderError(Exception):
    """The cluster did not do what was asked of it."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The cluster around this process. Its files are below `directory`; `layout` names them."""

    directory: pathlib.Path

    @classmethod
    def current(cls) -> Cluster:
        """The cluster that this process runs in.

        Raises:
            KeyError: it runs in none.
        """
        return cls(pathlib.Path(os.environ[VARIABLE]))

    @property
    def layout(self) -> layouts.Layout:
        return layouts.Layout(self.directory)

    @property
    def kubeconfig(self) -> pathlib.Path:
        """The administrator's."""
        return self.layout.kubeconfig("admin")

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return layouts.API_URL

    @property
    def ca_certificate(self) -> pathlib.Path:
        return self.layout.certificate("ca")

    def token(self, user: str) -> str:
        """The bearer token of one of the users of `layout.TOKENS`."""
        return next(token for token, (name, _) in layouts.TOKENS.items() if name == user)

    def get(self, path: str, token: str) -> Answer:
        """Asks the API server as the bearer of `token`, without any client library between."""
        context = ssl.create_default_context(cafile=str(self.ca_certificate))
        connection = http.client.HTTPSConnection(
            layouts.HOST_ADDRESS, layouts.API_PORT, context=context, timeout=_GET_LIMIT_S
        )
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            return Answer(response.status, response.read())

    def stop(self, program: str) -> None:
        """Kills a program (kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, coredns, etcd, kubelet)."""
        self._order("stop", program)

    def start(self, program: str) -> None:
        """Starts a program that was stopped and returns when it is ready."""
        self._order("start", program)

    def stop_api_server(self) -> None:
        self.stop(API_SERVER)

    def start_api_server(self) -> None:
        self.start(API_SERVER)

    def restart_api_server(self) -> None:
        self.stop_api_server()
        self.start_api_server()

    @contextlib.contextmanager
    def without(self, program: str) -> collections.abc.Iterator[None]:
        """Stops a program for the time of a block."""
        self.stop(program)
        try:
            yield
        finally:
            self.start(program)

    def _order(self, action: str, program: str) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ORDER_LIMIT_S)
            connection.connect(str(self.layout.control_socket))
            connection.sendall(json.dumps({"action": action, "program": program}).encode() + b"\n")
            with connection.makefile() as answer:
                error = json.loads(answer.readline())["error"]
        if error is not None:
            raise OrderError(f"{action} {program}: {error}")
