"""Who a bearer token belongs to and what a user may do: asked of the Kubernetes API server, remembered for a moment.

Decides nothing itself but that the cluster's administrators may do everything; what cannot be asked is not allowed.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from tms_server.metrics_api import bodies, front_proxy, kube
from tms_server.model import errors

TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"  # noqa: S105 - a path
ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
ADMINISTRATORS = "system:masters"
ALLOW_S, DENY_S = 10.0, 5.0
REMEMBERED = 4096
K = TypeVar("K")
V = TypeVar("V")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a user wants: to read a metric of a namespace, or a path without one."""

    path: str
    verb: str = "get"
    namespace: str = ""
    metric: str = ""

    def attributes(self) -> dict[str, Any]:
        if not self.metric:
            return {"nonResourceAttributes": {"path": self.path, "verb": self.verb}}
        return {
            "resourceAttributes": {
                "group": bodies.GROUP,
                "version": bodies.VERSION,
                "resource": self.metric,
                "namespace": self.namespace,
                "verb": self.verb,
            }
        }


class Cache(Generic[K, V]):
    """Answers with an end; the oldest go when there are too many."""

    def __init__(self, most: int = REMEMBERED, now_s: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._now_s = now_s
        self._kept: collections.OrderedDict[K, tuple[float, V]] = collections.OrderedDict()

    def get(self, key: K) -> V | None:
        found = self._kept.get(key)
        if found is None or found[0] <= self._now_s():
            self._kept.pop(key, None)
            return None
        return found[1]

    def put(self, key: K, value: V, ttl_s: float) -> None:
        self._kept.pop(key, None)
        self._kept[key] = (self._now_s() + ttl_s, value)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it is allowed, and what the authorizer said."""

    allowed: bool
    reason: str = ""


class Rights:
    """Delegated authentication and authorisation."""

    def __init__(self, api: kube.Kube) -> None:
        self._api = api
        self._users: Cache[str, front_proxy.User | None] = Cache()
        self._verdicts: Cache[tuple[front_proxy.User, Question], Verdict] = Cache()
        self._strangers: Cache[str, bool] = Cache()

    async def whose(self, token: str) -> front_proxy.User | None:
        """The user of a bearer token; None where it is nobody's. Unavailable when it cannot be asked."""
        key = hashlib.sha256(token.encode()).hexdigest()
        if self._strangers.get(key):
            return None
        known = self._users.get(key)
        if known is None:
            body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
            known = _user((await self._ask(TOKEN_REVIEWS, body)).get("status"))
            if known is None:
                self._strangers.put(key, value=True, ttl_s=DENY_S)
            else:
                self._users.put(key, known, ALLOW_S)
        return known

    async def may(self, user: front_proxy.User, question: Question) -> Verdict:
        """Whether the user may. Unavailable when it cannot be asked."""
        if ADMINISTRATORS in user.groups:
            return Verdict(allowed=True)
        key = (user, question)
        if (known := self._verdicts.get(key)) is not None:
            return known
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {**_subject(user), **question.attributes()},
        }
        status = (await self._ask(ACCESS_REVIEWS, body)).get("status") or {}
        allowed = bool(status.get("allowed")) and not status.get("denied")
        verdict = Verdict(allowed=allowed, reason=str(status.get("reason", "")))
        self._verdicts.put(key, verdict, ALLOW_S if allowed else DENY_S)
        return verdict

    async def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._api.create(path, body)
        except errors.PermissionDenied as error:
            # It is not the caller who lacks this right.
            raise errors.Unavailable(f"this server may not ask for rights: {error}") from error


def _subject(user: front_proxy.User) -> dict[str, Any]:
    return {
        "user": user.name,
        "uid": user.uid,
        "groups": list(user.groups),
        "extra": {key: list(values) for key, values in user.extra},
    }


def _user(status: Any) -> front_proxy.User | None:
    if not isinstance(status, dict) or not status.get("authenticated"):
        return None
    user = status.get("user") or {}
    extra = user.get("extra") or {}
    return front_proxy.User(
        str(user.get("username", "")),
        uid=str(user.get("uid", "")),
        groups=tuple(user.get("groups") or ()),
        extra=tuple((key, tuple(values)) for key, values in sorted(extra.items())),
    )
