"""What the backend must be allowed to do, asked of the cluster once, so that a missing right is told at the start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tms_server.backends.kubernetes import client, kinds
from tms_server.model import errors

Json = dict[str, Any]
Right = tuple[str, str, str]
"""Verb, API group, resource."""


def needed() -> list[Right]:
    """Rights in the namespace without which nothing works."""
    return [(verb, each.group, each.plural) for each in kinds.ALL if not each.optional for verb in each.verbs]


def allowed(rules: Sequence[Mapping[str, Any]], right: Right) -> bool:
    """Whether one of the rules grants the right for every object."""
    return any(
        all(_holds(rule.get(key) or (), value) for key, value in zip(_KEYS, right, strict=True))
        for rule in rules
        if not rule.get("resourceNames")
    )


async def check(api: client.Api) -> None:
    """PermissionDenied with every right that is missing; Unavailable."""
    answer = await api.review(
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": api.namespace},
        }
    )
    rules = (answer.get("status") or {}).get("resourceRules") or []
    doubtful = [right for right in needed() if not allowed(rules, right)]
    # Not every authorizer can list its rules, but each answers a plain question.
    missing = [right for right in doubtful if not await _may(api, right, api.namespace)]
    if missing:
        raise errors.PermissionDenied(
            f"missing rights in the namespace {api.namespace}: {', '.join(_lines(missing))};"
            " grant them to the account that the server uses"
        )


async def may_read_nodes(api: client.Api) -> bool:
    """Whether the optional right to list and watch nodes is there."""
    asked = [(verb, kinds.NODES.group, kinds.NODES.plural) for verb in kinds.NODES.verbs]
    return all([await _may(api, right, "") for right in asked])


_KEYS = ("verbs", "apiGroups", "resources")


def _holds(granted: Sequence[str], value: str) -> bool:
    return "*" in granted or value in granted


async def _may(api: client.Api, right: Right, namespace: str) -> bool:
    verb, group, plural = right
    resource, _, subresource = plural.partition("/")
    attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource}
    answer = await api.review(
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**attributes, **({"namespace": namespace} if namespace else {})}},
        }
    )
    return bool((answer.get("status") or {}).get("allowed"))


def _lines(missing: Sequence[Right]) -> Iterator[str]:
    """Verbs of a resource together."""
    verbs: dict[str, list[str]] = {}
    for verb, group, plural in missing:
        verbs.setdefault(f"{plural}.{group}" if group else plural, []).append(verb)
    return (f"{resource} ({', '.join(each)})" for resource, each in verbs.items())
