"""The server's certificates, kept in a Secret so that several servers show the same and a restart changes nothing.

Made once by whoever comes first, read by the others, renewed before they end and taken up without a restart. What
belongs to somebody else is never touched: NameTaken.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from tms_server import clock as clock_module
from tms_server.metrics_api import issuing, kube
from tms_server.model import errors

log = structlog.get_logger(__name__)
SECRET, CONFIG_MAP = "tms-serving", "tms-ca"
RECHECK = dt.timedelta(hours=1)
MANAGED_BY, INSTALLATION = "app.kubernetes.io/managed-by", "tms.dev/installation"
_FIELDS = {
    "tls.crt": "serving certificate",
    "tls.key": "its key",
    "authority.crt": "authority",
    "authority.key": "its key",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where certificates are kept: the Secret in the server's namespace, what clients trust beside the workers.

    `names` are those that the server is dialled by: DNS names and addresses.
    """

    namespace: str
    names: tuple[str, ...]
    installation: str
    secret: str = SECRET
    workers_namespace: str = ""
    """Where the ConfigMap with the authority (``ca.crt``) is put; empty: `namespace`."""
    config_map: str = CONFIG_MAP


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What listeners need, as PEM: certificate, key, and what clients check them with."""

    certificate: str
    key: str = dataclasses.field(repr=False)
    ca: str


class Certificates:
    """`refresh` first, and whenever it says; `current` between. Whoever subscribes is told of each change."""

    def __init__(self, api: kube.Kube, place: Place, clock: clock_module.Clock) -> None:
        self._api = api
        self._place = place
        self._clock = clock
        self._current: Shown | None = None
        self._listeners: list[Callable[[Shown], None]] = []

    @property
    def current(self) -> Shown:
        """FailedPrecondition before the first `refresh`."""
        if self._current is None:
            raise errors.FailedPrecondition("the certificates were not read yet")
        return self._current

    def subscribe(self, listener: Callable[[Shown], None]) -> None:
        """Calls it, on the event loop, with every certificate that follows the present one."""
        self._listeners.append(listener)

    async def refresh(self) -> dt.datetime:
        """Reads, makes or renews what is kept, and tells; answers when to look again.

        Unavailable or PermissionDenied when it cannot; FailedPrecondition where the Secret is somebody else's or broken.
        """
        now = self._clock.now()
        bundle = await self._agreed(now)
        await self._publish(bundle.trusted)
        self._take(Shown(certificate=bundle.serving.certificate, key=bundle.serving.key, ca=bundle.trusted))
        return min(now + RECHECK, max(now + dt.timedelta(seconds=1), issuing.due_at(bundle)))

    async def _agreed(self, now: dt.datetime) -> issuing.Bundle:
        """What all servers show: whoever loses a race takes what the other has kept."""
        try:
            return await self._kept(now)
        except errors.NotFound:
            pass
        made = issuing.issue(self._place.names, now)
        try:
            await self._api.create(self._secrets, self._secret(made))
        except errors.AlreadyExists:
            return await self._kept(now)
        log.info("certificates.made", secret=self._place.secret, names=list(self._place.names))
        return made

    async def _kept(self, now: dt.datetime) -> issuing.Bundle:
        found = await self._api.get(f"{self._secrets}/{self._place.secret}")
        self._check_owner("Secret", self._place.secret, found)
        bundle = _bundle(self._place.secret, found.get("data") or {})
        renewed = issuing.renewed(bundle, self._place.names, now)
        if renewed == bundle:
            return bundle
        body = self._secret(renewed)
        body["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        try:
            await self._api.merge(f"{self._secrets}/{self._place.secret}", body)
        except errors.Conflict:
            # Another server was faster; its certificate is as good.
            return _bundle(self._place.secret, (await self._api.get(f"{self._secrets}/{self._place.secret}"))["data"])
        log.info("certificates.renewed", secret=self._place.secret)
        return renewed

    async def _publish(self, trusted: str) -> None:
        """Lets the workers' pods have what they check the server with; put back where somebody took it away."""
        name, namespace = self._place.config_map, self._place.workers_namespace or self._place.namespace
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        metadata = self._metadata(name)
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"ca.crt": trusted}}
        try:
            found = await self._api.get(f"{path}/{name}")
        except errors.NotFound:
            found = None
        if found is not None:
            self._check_owner("ConfigMap", name, found)
            metadata |= kube.guard(found)
        if found is None or (found.get("data") or {}).get("ca.crt") != trusted:
            await self._api.apply(f"{path}/{name}", body)

    def _take(self, shown: Shown) -> None:
        if shown == self._current:
            return
        first = self._current is None
        self._current = shown
        for listener in () if first else self._listeners:
            listener(shown)

    def _check_owner(self, kind: str, name: str, found: Mapping[str, Any]) -> None:
        labels = found.get("metadata", {}).get("labels") or {}
        if (labels.get(MANAGED_BY), labels.get(INSTALLATION)) != ("tms", self._place.installation):
            raise errors.FailedPrecondition(
                f"NameTaken: {kind} {name} is not of this installation; remove it, or give this one another name"
            )

    @property
    def _secrets(self) -> str:
        return f"/api/v1/namespaces/{self._place.namespace}/secrets"

    def _secret(self, bundle: issuing.Bundle) -> dict[str, Any]:
        texts = {
            "tls.crt": bundle.serving.certificate,
            "tls.key": bundle.serving.key,
            "ca.crt": bundle.trusted,
            "authority.crt": bundle.authority.certificate,
            "authority.key": bundle.authority.key,
        }
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": self._metadata(self._place.secret),
            "type": "kubernetes.io/tls",
            "data": {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()},
        }

    def _metadata(self, name: str) -> dict[str, Any]:
        return {"name": name, "labels": {MANAGED_BY: "tms", INSTALLATION: self._place.installation}}


def _bundle(name: str, data: Mapping[str, str]) -> issuing.Bundle:
    missing = [f"{key} ({what})" for key, what in _FIELDS.items() if key not in data]
    if missing:
        raise errors.FailedPrecondition(f"Secret {name} lacks {', '.join(missing)}; delete it, and it is made anew")
    try:
        texts = {key: base64.b64decode(value, validate=True).decode() for key, value in data.items()}
    except (binascii.Error, UnicodeDecodeError) as error:
        raise errors.FailedPrecondition(f"Secret {name} is broken; delete it, and it is made anew: {error}") from error
    bundle = issuing.Bundle(
        serving=issuing.Pair(certificate=texts["tls.crt"], key=texts["tls.key"]),
        authority=issuing.Pair(certificate=texts["authority.crt"], key=texts["authority.key"]),
        trusted=texts.get("ca.crt") or texts["authority.crt"],
    )
    issuing.check(bundle)
    return bundle
