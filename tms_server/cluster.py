"""What a server on Kubernetes has beside its backend: certificates of its own making, and the metrics API.

Puts concrete parts together; opened after the store, closed before it. Decides nothing about leases.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import pathlib
from collections.abc import Iterator

from tms_server import clock as clock_module
from tms_server import settings as settings_module
from tms_server.metrics_api import certificates, kube, registration, server, service, source
from tms_server.reconcilers import loop
from tms_server.services import parts

_OWN_NAMESPACE = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """A pass for a loop of the server."""

    name: str
    work: loop.Pass


def own_namespace() -> str:
    """The namespace that this process runs in; `default` outside of a cluster."""
    with contextlib.suppress(OSError):
        return _OWN_NAMESPACE.read_text(encoding="utf-8").strip()
    return "default"


class Cluster:
    """Made with `open`. `certificates` is None unless they are managed; nothing listens before `serve`."""

    def __init__(self, settings: settings_module.Settings, api: kube.Kube, clock: clock_module.Clock) -> None:
        self._settings = settings
        self._api = api
        self._clock = clock
        self._namespace = own_namespace()
        self.certificates: certificates.Certificates | None = None
        self.metrics_api: service.MetricsApi | None = None

    @classmethod
    async def open(cls, settings: settings_module.Settings, api: kube.Kube, clock: clock_module.Clock) -> Cluster:
        """Reads or makes the certificates. FailedPrecondition, PermissionDenied or Unavailable say what is missing."""
        opened = cls(settings, api, clock)
        if settings.tls.managed or settings.metrics_api.enabled:
            opened.certificates = certificates.Certificates(opened._api, opened._place(), clock)
            try:
                await opened.certificates.refresh()
            except BaseException:
                await opened.close()
                raise
        return opened

    def shown(self) -> tuple[str, str]:
        """Certificate and key that listeners show now."""
        assert self.certificates is not None
        current = self.certificates.current
        return current.certificate, current.key

    async def serve(self, work: parts.Parts) -> None:
        """Listens with the metrics API, where it is wanted; FailedPrecondition when its address cannot be had."""
        chosen = self._settings.metrics_api
        if not chosen.enabled or self.certificates is None:
            return
        leads_to = registration.Service(namespace=self._namespace, name=chosen.service)
        values = source.LeaseSource(
            namespace=self._settings.kubernetes.namespace or self._namespace,
            store=work.store,
            backend=work.backend,
            live=work.live,
            usage=work.usage,
            clock=self._clock,
        )
        self.metrics_api = service.MetricsApi(
            service.Parts(api=self._api, source=values, clock=self._clock, registry=work.metrics.registry),
            service.Options(
                at=server.Address(host=chosen.address, port=chosen.port),
                service=leads_to,
                installation=chosen.service,
                register=chosen.register_service,
            ),
            self.certificates.current,
        )
        self.certificates.subscribe(self.metrics_api.show)
        await self.metrics_api.open()

    def passes(self) -> Iterator[Pass]:
        """What has to be done again and again."""
        if self.certificates is not None:
            yield Pass("certificates", self._renew)
        if self.metrics_api is not None:
            yield Pass("metrics_api", self.metrics_api.keep)

    @property
    def autoscales(self) -> bool:
        """HorizontalPodAutoscalers can read our metrics; else TMS sizes dedicated leases itself."""
        return self.metrics_api is not None and not self.metrics_api.scales_itself

    async def close(self) -> None:
        """Ends the listener and the connection."""
        if self.metrics_api is not None:
            await self.metrics_api.close()
        await self._api.close()

    async def _renew(self) -> dt.datetime | None:
        assert self.certificates is not None
        due = await self.certificates.refresh()
        if self.metrics_api is not None:
            # A renewed authority belongs into the APIService before the old one ends.
            await self.metrics_api.keep()
        return due

    def _place(self) -> certificates.Place:
        name, chosen = self._settings.metrics_api.service, self._settings.kubernetes
        in_cluster = (name, f"{name}.{self._namespace}", f"{name}.{self._namespace}.svc")
        dialled = chosen.dial.rpartition(":")[0].strip("[]") or self._settings.dial_host
        return certificates.Place(
            namespace=self._namespace,
            names=tuple(
                dict.fromkeys(filter(None, (*in_cluster, dialled, "localhost", "127.0.0.1", *self._settings.tls.names)))
            ),
            installation=name,
            secret=f"{name}-serving",
            workers_namespace=chosen.namespace,
            config_map=f"{name}-ca",
        )
