"""Pods written by hand for tests of the fake kubelet: made, looked at as the API server has them, and waited for."""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import typing

import kubernetes

from tests.kubernetes.cluster import waiting

Json = dict[str, typing.Any]
_LIMIT_S = 90.0  # a busy machine starts processes slowly
SHELL = "test/shell"  # an image without a command of its own


@dataclasses.dataclass(frozen=True)
class Pods:
    """Pods of one Kubernetes namespace."""

    api: kubernetes.client.ApiClient
    namespace: str

    @property
    def core(self) -> typing.Any:
        """The client; it takes plain JSON too, which its types do not know."""
        return kubernetes.client.CoreV1Api(self.api)

    def create(self, name: str, *containers: Json, **spec: typing.Any) -> str:
        """Makes a pod and gives NAMESPACE/NAME."""
        body = {"metadata": {"name": name}, "spec": {"containers": list(containers), **_QUICK, **spec}}
        self.core.create_namespaced_pod(self.namespace, body)
        return f"{self.namespace}/{name}"

    def get(self, name: str) -> Json:
        """The pod as JSON; {} where there is none."""
        try:
            answer = self.core.read_namespaced_pod(name, self.namespace, _preload_content=False)
        except kubernetes.client.ApiException as error:
            if error.status == 404:
                return {}
            raise
        return dict(json.loads(answer.data))

    def until(self, name: str, good: collections.abc.Callable[[Json], object]) -> Json:
        return waiting.until(lambda: self.get(name), good, _LIMIT_S)

    def until_ready(self, name: str) -> Json:
        return self.until(name, lambda pod: condition(pod, "Ready") == "True")

    def until_logged(self, name: str, text: str, container: str = "main") -> str:
        return waiting.until(lambda: self.log(name, container), lambda log: text in log, _LIMIT_S)

    def log(self, name: str, container: str = "main", **options: typing.Any) -> str:
        """The log of a container; "" where there is none yet."""
        try:
            answer = self.core.read_namespaced_pod_log(
                name, self.namespace, container=container, _preload_content=False, **options
            )
        except kubernetes.client.ApiException as error:
            if error.status in {400, 404}:
                return ""
            raise
        return str(answer.data.decode())

    def delete(self, name: str, **options: typing.Any) -> None:
        self.core.delete_namespaced_pod(name, self.namespace, **options)

    def until_event(self, name: str, reason: str, text: str = "") -> str:
        """Waits for an event about the pod with `text` in its message, and gives the message."""

        def messages() -> list[str]:
            events = self.core.list_namespaced_event(self.namespace, field_selector=f"involvedObject.name={name}")
            return [str(event.message) for event in events.items if event.reason == reason and text in event.message]

        return waiting.until(messages, bool, _LIMIT_S)[0]


def shell(script: str, name: str = "main", **fields: typing.Any) -> Json:
    """A container that runs a script."""
    return {"name": name, "image": SHELL, "command": ["sh", "-c", script], **fields}


def condition(pod: Json, kind: str) -> str | None:
    found = pod.get("status", {}).get("conditions") or []
    return next((str(one["status"]) for one in found if one["type"] == kind), None)


def container(pod: Json, name: str = "main") -> Json:
    """The status of a container; one that says nothing where there is none."""
    said = pod.get("status", {})
    every = [*(said.get("initContainerStatuses") or []), *(said.get("containerStatuses") or [])]
    return next((one for one in every if one["name"] == name), {"state": {}, "lastState": {}, "restartCount": 0})


def waits_for(pod: Json, name: str = "main") -> str | None:
    """Why a container waits."""
    reason = container(pod, name)["state"].get("waiting", {}).get("reason")
    return None if reason is None else str(reason)


_QUICK: Json = {"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False}
