"""Names and marks of everything that is made in the cluster. Derived, never remembered; the same for every server."""

from __future__ import annotations

import re

from tms_server.fleet import desired
from tms_server.model import errors, ids

HTTP_PORT, GRPC_PORT, METRICS_PORT, HEALTH_PORT = 8000, 8001, 8002, 8003
MANAGER = "tms"
MANAGED_BY = "app.kubernetes.io/managed-by"
INSTALLATION = "tms.dev/installation"
GROUP = "tms.dev/group"
LEASE = "tms.dev/lease"
NAME = "tms.dev/name"
TENANT = "tms.dev/namespace"
SERVING_PREFIX = "lease.tms.dev/"
SERVING = "serving"
MOVED_AT = "tms.dev/moved-at"
APPLIED = "tms.dev/applied"
HEADLESS = "-headless"

LONGEST = 63
_DERIVED = re.compile(r"[lw]-[0-9a-f]{16}")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_SERVICE = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


def marks(installation: ids.InstallationId) -> dict[str, str]:
    """Labels that make an object ours."""
    return {MANAGED_BY: MANAGER, INSTALLATION: installation}


def tenant_mark(namespace: ids.Namespace) -> dict[str, str]:
    """The tenant as a label, where it can be one."""
    return {TENANT: namespace} if _LABEL_VALUE.fullmatch(namespace) else {}


def serving_label(lease_id: str) -> str:
    """Key of the label of pods that may get the lease's requests."""
    return f"{SERVING_PREFIX}{lease_id}"


def service_of(owner: str) -> str:
    """Name of the Service of a ``lease/<id>``, ``name/<namespace>/<name>`` or ``group/<id>``."""
    match owner.split("/"):
        case [("lease" | "group"), name]:
            return name
        case ["name", ids.DEFAULT_NAMESPACE, name]:
            return name
        case ["name", namespace, name]:
            return f"{namespace}--{name}"
    raise errors.InvalidField("owner", f"{owner!r} is neither lease/<id>, name/<namespace>/<name> nor group/<id>")


def owner_marks(owner: str, lease_id: ids.LeaseId) -> dict[str, str]:
    """Labels that say for whom a Service is, and to which lease it leads."""
    match owner.split("/"):
        case ["lease", _]:
            return {LEASE: lease_id}
        case ["name", namespace, name]:
            return {LEASE: lease_id, NAME: name, **tenant_mark(ids.Namespace(namespace))}
    raise errors.InvalidField("owner", f"{owner!r} is neither lease/<id> nor name/<namespace>/<name>")


def refuse(namespace: ids.Namespace, name: ids.LeaseName) -> str | None:
    """Why a lease name can have no Service of its own."""
    service = service_of(desired.name_owner(namespace, name))
    if "--" in namespace or "--" in name:
        return f"name: {name!r} in {namespace!r}: two hyphens in a row separate namespace and name; use one"
    if not _SERVICE.fullmatch(service):
        return f"name: a Service {service!r} needs 1 to 63 of [a-z0-9-], first a letter, last no hyphen"
    if len(service) + len(HEADLESS) > LONGEST:
        return f"name: the Service {service!r} has {len(service)} characters; at most {LONGEST - len(HEADLESS)} fit"
    if service.endswith(HEADLESS):
        return f"name: {service!r} would be the headless Service of another name; end it otherwise"
    if _DERIVED.fullmatch(service):
        return f"name: {service!r} looks like the id of a lease or a worker; choose another"
    return None
