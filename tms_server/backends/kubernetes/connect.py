"""Finds the API server and the credentials: a kubeconfig that is named, the pod's own account, or the user's kubeconfig."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import kubernetes.aio.client
import kubernetes.aio.config

from tms_server.model import errors


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Which cluster; both empty: where this process runs, else the user's."""

    kubeconfig: pathlib.Path | None = None
    context: str = ""


async def connect(connection: Connection) -> kubernetes.aio.client.ApiClient:
    """A client that talks to no one yet; FailedPrecondition when there are no credentials that can be read."""
    configuration = kubernetes.aio.client.Configuration()
    try:
        if _in_cluster(connection):
            kubernetes.aio.config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]  # ships no types
        else:
            await kubernetes.aio.config.load_kube_config(  # type: ignore[no-untyped-call]  # ships no types
                config_file=str(_file(connection)),
                context=connection.context or None,
                client_configuration=configuration,
                persist_config=False,
            )
    except (kubernetes.aio.config.ConfigException, OSError, ValueError, KeyError, TypeError) as failure:
        where = "the service account" if _in_cluster(connection) else f"kubeconfig {_file(connection)}"
        raise errors.FailedPrecondition(f"kubernetes.kubeconfig: {where} cannot be used: {failure}") from failure
    return kubernetes.aio.client.ApiClient(configuration)


def _in_cluster(connection: Connection) -> bool:
    named = connection.kubeconfig is not None or connection.context or os.environ.get("KUBECONFIG")
    return not named and "KUBERNETES_SERVICE_HOST" in os.environ


def _file(connection: Connection) -> pathlib.Path:
    if connection.kubeconfig is not None:
        return connection.kubeconfig
    return pathlib.Path(os.environ.get("KUBECONFIG") or "~/.kube/config").expanduser()
