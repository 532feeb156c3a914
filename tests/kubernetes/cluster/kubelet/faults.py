"""What goes wrong on nodes, at a test's word: lost nodes, killed and frozen containers, failed pulls, evictions.

A test's own half of the kubelet's control socket. Every call returns when the kubelet has done it; what follows
from it (a status, a restart) comes in its own time, as in a real cluster.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import socket
import typing

from tests.kubernetes.cluster import layout

SOCKET = "control.sock"

_LIMIT_S = 30.0
_Processes = typing.Literal["killed", "frozen", "running"]


class FaultError(Exception):
    """The kubelet could not do it; the message says why."""


@dataclasses.dataclass(frozen=True)
class Faults:
    """Pods are named NAMESPACE/NAME. `directory` is the cluster's."""

    directory: pathlib.Path

    def lose_node(self, node: str, processes: _Processes = "killed") -> None:
        """The node falls silent: no lease, no status, no probes. What runs there is killed (a machine that lost its
        power), frozen, or goes on running unseen (a cut wire)."""
        self._order("lose_node", node=node, processes=processes)

    def restore_node(self, node: str) -> None:
        self._order("restore_node", node=node)

    def kill_container(self, pod: str, container: str, reason: str | None = None) -> None:
        """SIGKILL to its first process; `reason` (OOMKilled) is what its end shall be called in place of Error."""
        self._order("kill_container", pod=pod, container=container, reason=reason)

    def freeze_container(self, pod: str, container: str) -> None:
        """SIGSTOP to all of its processes."""
        self._order("freeze_container", pod=pod, container=container)

    def thaw_container(self, pod: str, container: str) -> None:
        self._order("thaw_container", pod=pod, container=container)

    def container_pid(self, pod: str, container: str) -> int:
        """Its first process, as this machine counts."""
        return int(self._order("container_pid", pod=pod, container=container))

    def fail_pull(self, image: str, message: str = "not found") -> None:
        """Pulls of this image fail from now on. With a tag only that one, without any."""
        self._order("fail_pull", image=image, message=message)

    def mend_pull(self, image: str) -> None:
        """Takes `fail_pull` of the same text back, and tries at once."""
        self._order("mend_pull", image=image)

    def register_image(self, image: str, command: list[str]) -> None:
        """Lets an image run `command`, for all tags; an empty command leaves it to the pod."""
        self._order("register_image", image=image, command=command)

    def hold_readiness(self, pod: str) -> None:
        """The pod's containers are not ready, whatever their probes say."""
        self._order("hold_readiness", pod=pod, held=True)

    def release_readiness(self, pod: str) -> None:
        self._order("hold_readiness", pod=pod, held=False)

    def evict(self, pod: str, message: str = "The node was low on resource: memory.") -> None:
        """Ends the pod as a node under pressure does: phase Failed, reason Evicted."""
        self._order("evict", pod=pod, message=message)

    def pods(self) -> list[str]:
        """All pods that the kubelet's nodes have."""
        return list(self._order("pods"))

    def _order(self, action: str, **arguments: object) -> typing.Any:
        path = layout.Layout(self.directory).kubelet / SOCKET
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_LIMIT_S)
            connection.connect(str(path))
            connection.sendall(json.dumps({"action": action, **arguments}).encode() + b"\n")
            with connection.makefile() as stream:
                answer = json.loads(stream.readline())
        if answer["error"] is not None:
            raise FaultError(f"{action}: {answer['error']}")
        return answer["result"]
