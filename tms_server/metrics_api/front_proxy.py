"""Who a caller is when the Kubernetes API server speaks for it.

Reads kube-system's published configuration and a verified client certificate's name; trusts the headers only where both
agree. Decides nothing about rights.
"""

from __future__ import annotations

import dataclasses
import json
import urllib.parse
from collections.abc import Mapping, Sequence

from tms_server.model import errors

CONFIG_MAP = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"
AUTHENTICATED = "system:authenticated"
ANONYMOUS_USER = "system:anonymous"
UNAUTHENTICATED = "system:unauthenticated"


@dataclasses.dataclass(frozen=True, slots=True)
class User:
    """Who calls, as Kubernetes knows users."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


ANONYMOUS = User(ANONYMOUS_USER, groups=(UNAUTHENTICATED,))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whose client certificates speak for others, and in which headers (lower case)."""

    ca_pem: str
    allowed_names: tuple[str, ...]
    """Empty: every name that the CA has signed."""
    user_headers: tuple[str, ...]
    group_headers: tuple[str, ...]
    extra_prefixes: tuple[str, ...]
    uid_headers: tuple[str, ...] = ()

    def allows(self, common_name: str) -> bool:
        return bool(common_name) and (not self.allowed_names or common_name in self.allowed_names)

    def user(self, headers: Sequence[tuple[str, str]]) -> User | None:
        """Whom the headers name; None where they name nobody."""
        lowered = [(name.lower(), value) for name, value in headers]
        name = _first(lowered, self.user_headers)
        if not name:
            return None
        groups = [value for header in self.group_headers for key, value in lowered if key == header]
        # As the API server itself does: whoever is named and is not the anonymous user has been authenticated.
        if name != ANONYMOUS_USER and AUTHENTICATED not in groups:
            groups.append(AUTHENTICATED)
        return User(
            name,
            uid=_first(lowered, self.uid_headers),
            groups=tuple(dict.fromkeys(groups)),
            extra=_extra(lowered, self.extra_prefixes),
        )


def parse(config_map: Mapping[str, object]) -> Trust:
    """From the ConfigMap; FailedPrecondition where the API server was started without the aggregation flags."""
    found = config_map.get("data")
    data = found if isinstance(found, dict) else {}
    ca_pem = data.get("requestheader-client-ca-file", "")
    user_headers = _names(data.get("requestheader-username-headers"))
    if not ca_pem or not user_headers:
        raise errors.FailedPrecondition(
            "the Kubernetes API server publishes no requestheader CA in kube-system/extension-apiserver-authentication: "
            "start it with --requestheader-client-ca-file and --requestheader-username-headers"
        )
    return Trust(
        ca_pem=ca_pem,
        allowed_names=tuple(_list(data.get("requestheader-allowed-names"))),
        user_headers=user_headers,
        group_headers=_names(data.get("requestheader-group-headers")),
        extra_prefixes=_names(data.get("requestheader-extra-headers-prefix")),
        uid_headers=_names(data.get("requestheader-uid-headers")),
    )


def _first(headers: Sequence[tuple[str, str]], names: Sequence[str]) -> str:
    return next((value for name in names for key, value in headers if key == name and value), "")


def _extra(headers: Sequence[tuple[str, str]], prefixes: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found: dict[str, list[str]] = {}
    for key, value in headers:
        for prefix in prefixes:
            if key.startswith(prefix):
                found.setdefault(urllib.parse.unquote(key.removeprefix(prefix)), []).append(value)
    return tuple((key, tuple(values)) for key, values in sorted(found.items()))


def _names(text: object) -> tuple[str, ...]:
    return tuple(each.lower() for each in _list(text))


def _list(text: object) -> list[str]:
    try:
        found = json.loads(text) if isinstance(text, str) and text else []
    except ValueError:
        raise errors.FailedPrecondition(
            f"kube-system/extension-apiserver-authentication: {text!r} is no list"
        ) from None
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []
