"""Who serves external.metrics.k8s.io in this cluster.

Keeps our own APIService and its CA; one that leads to another Service is somebody else's and never touched. Decides
nothing about scaling: it only says whether HorizontalPodAutoscalers read our metrics.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import structlog

from tms_server.metrics_api import bodies, kube
from tms_server.model import errors

log = structlog.get_logger(__name__)
NAME = f"{bodies.VERSION}.{bodies.GROUP}"
COLLECTION = "/apis/apiregistration.k8s.io/v1/apiservices"
PATH = f"{COLLECTION}/{NAME}"
MANAGED_BY, INSTALLATION = "app.kubernetes.io/managed-by", "tms.dev/installation"


class Holder(enum.StrEnum):
    """Whose the API group is."""

    UNKNOWN = "unknown"
    OURS = "ours"
    OTHER = "other"
    NOBODY = "nobody"


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """Whose it is, and a sentence for people."""

    holder: Holder
    message: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The Service that leads to our metrics API."""

    namespace: str
    name: str
    port: int = 443


class Registration:
    """`keep` makes or renews what is ours; `state` says what was found last."""

    def __init__(self, api: kube.Kube, service: Service, installation: str) -> None:
        self._api = api
        self._service = service
        self._installation = installation
        self.state = State(Holder.UNKNOWN, "the APIService was not looked at yet")

    async def keep(self, ca_pem: str, *, manage: bool = True, own_ca: bool = True) -> State:
        """Looks, and with `manage` makes the APIService where there is none.

        `own_ca`: the CA in it is kept as given, where it is ours. Unavailable when the API server does not answer.
        """
        before = self.state
        try:
            self.state = await self._look(ca_pem, manage=manage, own_ca=own_ca)
        except (errors.PermissionDenied, errors.Conflict, errors.FailedPrecondition) as error:
            self.state = State(Holder.UNKNOWN, str(error))
        if self.state != before:
            say = log.info if self.state.holder is Holder.OURS else log.warning
            say("metrics_api.registration", holder=str(self.state.holder), message=self.state.message)
        return self.state

    async def _look(self, ca_pem: str, *, manage: bool, own_ca: bool) -> State:
        try:
            found = await self._api.get(PATH)
        except errors.NotFound:
            if not manage:
                return State(Holder.NOBODY, f"there is no APIService {NAME}, and none is to be made")
            return await self._create(ca_pem)
        spec = found.get("spec") or {}
        leads_to = spec.get("service")
        if not isinstance(leads_to, dict) or not self._is_ours(leads_to):
            other = (
                f"{leads_to.get('namespace')}/{leads_to.get('name')}"
                if isinstance(leads_to, dict)
                else "the API server"
            )
            return State(Holder.OTHER, f"{NAME} is served by {other}; TMS scales by itself")
        if own_ca and spec.get("caBundle") != _encoded(ca_pem):
            await self._api.apply(PATH, self._patch(found, ca_pem))
        return self._ours()

    async def _create(self, ca_pem: str) -> State:
        try:
            await self._api.create(COLLECTION, self._object(ca_pem))
        except errors.AlreadyExists:
            # Another server was faster, or somebody else: look anew.
            return await self._look(ca_pem, manage=False, own_ca=True)
        except errors.PermissionDenied as error:
            return State(Holder.NOBODY, f"there is no APIService {NAME}, and this server may not make it: {error}")
        return self._ours()

    def _is_ours(self, leads_to: Mapping[str, Any]) -> bool:
        return (leads_to.get("namespace"), leads_to.get("name")) == (self._service.namespace, self._service.name)

    def _ours(self) -> State:
        return State(Holder.OURS, f"{NAME} is served by {self._service.namespace}/{self._service.name}")

    def _patch(self, found: dict[str, Any], ca_pem: str) -> dict[str, Any]:
        """The whole object where we made it; else the CA alone, for the rest belongs to whoever installed it."""
        labels = found.get("metadata", {}).get("labels") or {}
        whole = self._object(ca_pem)
        whole["metadata"] |= kube.guard(found)
        if (labels.get(MANAGED_BY), labels.get(INSTALLATION)) == ("tms", self._installation):
            return whole
        head = {key: whole[key] for key in ("apiVersion", "kind")}
        return {**head, "metadata": {"name": NAME, **kube.guard(found)}, "spec": {"caBundle": _encoded(ca_pem)}}

    def _object(self, ca_pem: str) -> dict[str, Any]:
        service = {"namespace": self._service.namespace, "name": self._service.name, "port": self._service.port}
        return {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": NAME, "labels": {MANAGED_BY: "tms", INSTALLATION: self._installation}},
            "spec": {
                "group": bodies.GROUP,
                "version": bodies.VERSION,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "service": service,
                "caBundle": _encoded(ca_pem),
            },
        }


def _encoded(ca_pem: str) -> str:
    return base64.b64encode(ca_pem.encode()).decode()
