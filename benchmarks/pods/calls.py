"""Who called the API server how often: one user's calls from the audit log, everybody's writes from its own counters."""

from __future__ import annotations

import collections
import json
import pathlib
import re

from tests.kubernetes.cluster import client as cluster_client

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_COUNTED = re.compile(r'^apiserver_request_total\{.*verb="(?:POST|PUT|PATCH|APPLY|DELETE)".*\} (\S+)$', re.MULTILINE)


class Calls:
    """What one user asked since `begin`, by verb and resource."""

    def __init__(self, user: str) -> None:
        self._user = user
        self._log: pathlib.Path = cluster_client.Cluster.current().layout.audit_log
        self._from = 0

    def begin(self) -> None:
        """Counts from here on."""
        self._from = self._log.stat().st_size

    def counted(self) -> collections.Counter[tuple[str, str]]:
        """Each call once, though a watch is written down when it begins and when it ends."""
        with self._log.open() as lines:
            lines.seek(self._from)
            events = [json.loads(line) for line in lines if f'"username":"{self._user}"' in line and line[-1] == "\n"]
        whole = {each["auditID"]: each for each in events}
        return collections.Counter(
            (each["verb"], (each.get("objectRef") or {}).get("resource", "")) for each in whole.values()
        )


def writes(counted: collections.Counter[tuple[str, str]]) -> int:
    """Those that change something; a review of access is a question, though it is created."""
    return sum(number for (verb, what), number in counted.items() if verb in WRITES and not what.endswith("reviews"))


def all_writes() -> int:
    """Writes of everybody since the API server started."""
    cluster = cluster_client.Cluster.current()
    counters = cluster.get("/metrics", cluster.token("root")).body.decode()
    return round(sum(float(each) for each in _COUNTED.findall(counters)))
