"""Whom a front proxy speaks for, from what kube-system publishes."""

from __future__ import annotations

import pytest

from tms_server.metrics_api import front_proxy, rights
from tms_server.model import errors

DATA = {
    "requestheader-client-ca-file": "PEM",
    "requestheader-allowed-names": '["front-proxy-client"]',
    "requestheader-username-headers": '["X-Remote-User"]',
    "requestheader-group-headers": '["X-Remote-Group"]',
    "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
    "requestheader-uid-headers": '["X-Remote-Uid"]',
}


def trust(**changes: object) -> front_proxy.Trust:
    return front_proxy.parse({"data": {**DATA, **changes}})


def test_user_groups_and_extra_come_from_the_published_headers() -> None:
    user = trust().user(
        [
            ("X-REMOTE-USER", "ada"),
            ("x-remote-group", "g1"),
            ("X-Remote-Group", "g2"),
            ("X-Remote-Uid", "7"),
            ("X-Remote-Extra-Scopes", "a"),
            ("X-Remote-Extra-scopes", "b"),
            ("X-Remote-Extra-example.com%2Fteam", "c"),
            ("X-Other-User", "root"),
        ]
    )
    assert user == front_proxy.User(
        "ada",
        uid="7",
        groups=("g1", "g2", "system:authenticated"),
        extra=(("example.com/team", ("c",)), ("scopes", ("a", "b"))),
    )


def test_the_anonymous_user_is_not_authenticated_by_being_named() -> None:
    headers = [("X-Remote-User", "system:anonymous"), ("X-Remote-Group", "system:unauthenticated")]
    assert trust().user(headers) == front_proxy.ANONYMOUS
    assert trust().user([]) is None
    assert trust().user([("X-Remote-User", "")]) is None


def test_names_are_allowed_as_published() -> None:
    assert trust().allows("front-proxy-client")
    assert not trust().allows("kubelet")
    anybody = trust(**{"requestheader-allowed-names": "[]"})
    assert anybody.allows("kubelet")
    assert not anybody.allows("")


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"requestheader-client-ca-file": ""},
        {"requestheader-client-ca-file": "PEM"},
        {**DATA, "requestheader-username-headers": "not json"},
    ],
)
def test_an_api_server_without_aggregation_is_named(data: dict[str, str]) -> None:
    with pytest.raises(errors.FailedPrecondition, match="extension-apiserver-authentication"):
        front_proxy.parse({"data": data})


def test_remembered_answers_end_and_are_bounded() -> None:
    now = [0.0]
    cache: rights.Cache[str, int] = rights.Cache(2, lambda: now[0])
    cache.put("a", 1, 10)
    now[0] = 9.9
    assert cache.get("a") == 1
    now[0] = 10.0
    assert cache.get("a") is None
    for place, key in enumerate("xyz"):
        cache.put(key, place, 10)
    assert [cache.get(key) for key in "xyz"] == [None, 1, 2]
