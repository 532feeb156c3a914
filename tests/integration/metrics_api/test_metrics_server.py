"""The metrics API over real TLS: who may read what, and what callers see when they may not."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import json
import pathlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import prometheus_client
import pytest
import trustme

from tests.integration.metrics_api import conftest as support
from tms_server import clock as clock_module
from tms_server.metrics_api import (
    bodies,
    certificates,
    front_proxy,
    issuing,
    kube,
    registration,
    selectors,
    server,
    service,
    trust,
)
from tms_server.model import lease
from tms_server.testing import clock as fake_clock

METRICS = f"/apis/{bodies.GROUP_VERSION}"
QUEUE = f"{METRICS}/namespaces/models/tms_queue_time"
USER = {"X-Remote-User": "hpa", "X-Remote-Group": "controllers"}


class Values:
    """Two leases with a value each."""

    async def series(self, kind: lease.MetricKind, namespace: str, selector: selectors.Selector) -> list[bodies.Series]:
        found = [
            bodies.Series(kind=kind, labels={"lease": name}, value_milli=value, at=fake_clock.START, window=WINDOW)
            for name, value in (("l-1", 1500), ("l-2", 0))
        ]
        return [each for each in found if selector.matches(each.labels) and namespace == "models"]


WINDOW = dt.timedelta(seconds=15)


@dataclasses.dataclass
class Face:
    """The server with its clients' certificates."""

    opened: service.MetricsApi
    bundle: issuing.Bundle
    proxy_ca: trustme.CA
    folder: pathlib.Path

    def context(self, name: str = "", signer: trustme.CA | None = None, trusted: str = "") -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=trusted or self.bundle.trusted)
        if name:
            certificate = (signer or self.proxy_ca).issue_cert(common_name=name, key_type=trustme.KeyType.ECDSA)
            with certificate.private_key_and_cert_chain_pem.tempfile(str(self.folder)) as path:
                context.load_cert_chain(path)
        return context

    async def get(
        self,
        path: str,
        headers: dict[str, str] | None = None,
        *,
        ssl_: ssl.SSLContext | None = None,
        method: str = "GET",
    ) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method, f"https://127.0.0.1:{self.opened.port}{path}", headers=headers, ssl=ssl_ or self.context()
            ) as answer,
        ):
            text = await answer.text()
            return answer.status, json.loads(text) if text.startswith("{") else text

    async def as_proxy(self, path: str, headers: dict[str, str] | None = None, **more: Any) -> tuple[int, Any]:
        return await self.get(
            path, USER if headers is None else headers, ssl_=self.context("front-proxy-client"), **more
        )


@pytest.fixture
async def face(api: kube.Kube, cluster: support.Cluster, tmp_path: pathlib.Path) -> AsyncIterator[Face]:
    proxy_ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
    await cluster.put(front_proxy.CONFIG_MAP, support.config_map(proxy_ca.cert_pem.bytes().decode()))
    cluster.allowed = {("hpa", "tms_queue_time"), ("hpa", "/apis"), ("hpa", METRICS), ("hpa", "tms_nothing")}
    clock = fake_clock.FakeClock()
    bundle = issuing.issue(["127.0.0.1"], certificates_now())
    shown = certificates.Shown(certificate=bundle.serving.certificate, key=bundle.serving.key, ca=bundle.trusted)
    opened = service.MetricsApi(
        service.Parts(api=api, source=Values(), clock=clock, registry=prometheus_client.CollectorRegistry()),
        service.Options(
            at=server.Address(host="127.0.0.1", port=0),
            service=registration.Service(namespace="tms", name="tms-server"),
            installation="i-1",
        ),
        shown,
    )
    await opened.open()
    yield Face(opened, bundle, proxy_ca, tmp_path)
    await opened.close()


def certificates_now() -> dt.datetime:
    """Certificates are checked by the library against the machine's own clock."""
    return clock_module.SystemClock().now()


async def test_discovery_names_every_metric(face: Face) -> None:
    status, body = await face.as_proxy(METRICS)
    assert status == 200
    assert body["kind"] == "APIResourceList"
    assert {each["name"] for each in body["resources"]} == {f"tms_{kind}" for kind in lease.MetricKind}
    assert all(each["namespaced"] and each["verbs"] == ["get"] for each in body["resources"])
    status, body = await face.as_proxy("/apis")
    assert (status, body["groups"][0]["name"]) == (200, bodies.GROUP)


async def test_a_discovery_in_one_document_is_not_acceptable_but_the_plain_one_beside_it_is(face: Face) -> None:
    one = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    assert (await face.as_proxy("/apis", {**USER, "Accept": one}))[0] == 406
    assert (await face.as_proxy("/apis", {**USER, "Accept": f"{one},application/json"}))[0] == 200
    assert (await face.as_proxy("/apis", {**USER, "Accept": "application/vnd.kubernetes.protobuf"}))[0] == 406


async def test_values_are_selected_by_label(face: Face) -> None:
    status, body = await face.as_proxy(f"{QUEUE}?labelSelector=lease%3Dl-1")
    assert status == 200
    assert (body["kind"], body["apiVersion"]) == ("ExternalMetricValueList", bodies.GROUP_VERSION)
    (only,) = body["items"]
    assert (only["metricName"], only["value"], only["metricLabels"]) == ("tms_queue_time", "1500m", {"lease": "l-1"})
    assert only["timestamp"] == "2030-01-01T00:00:00Z"
    assert [each["value"] for each in (await face.as_proxy(QUEUE))[1]["items"]] == ["1500m", "0m"]
    assert (await face.as_proxy(f"{QUEUE}?labelSelector=lease%3Dl-9"))[1]["items"] == []


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        (f"{QUEUE}?labelSelector=lease+in+(a", 400, "BadRequest"),
        (f"{METRICS}/namespaces/models/tms_nothing", 404, "NotFound"),
        (f"{METRICS}/namespaces/models/tms_latency", 403, "Forbidden"),
        (f"{QUEUE}?watch=true", 405, "MethodNotAllowed"),
    ],
)
async def test_refusals_are_kubernetes_own(face: Face, path: str, code: int, reason: str) -> None:
    status, body = await face.as_proxy(path)
    assert (status, body["kind"], body["code"], body["reason"]) == (code, "Status", code, reason)
    assert body["message"]


async def test_nothing_can_be_written(face: Face) -> None:
    assert (await face.as_proxy(QUEUE, method="DELETE"))[0] == 405


@pytest.mark.parametrize("path", ["/openapi/v2", "/openapi/v3", "/", "/apis/other", f"{METRICS}/namespaces/a/b/c"])
async def test_administrators_find_nothing_else(face: Face, path: str) -> None:
    admin = {"X-Remote-User": "root", "X-Remote-Group": "system:masters"}
    assert (await face.as_proxy(path, admin))[0] == 404


async def test_headers_count_only_with_the_front_proxys_certificate(face: Face) -> None:
    assert (await face.get(QUEUE, USER))[0] == 401
    assert (await face.get(QUEUE, USER, ssl_=face.context("somebody-else")))[0] == 401
    stranger = face.context("front-proxy-client", trustme.CA(key_type=trustme.KeyType.ECDSA))
    with pytest.raises(aiohttp.ClientError):
        await face.get(QUEUE, USER, ssl_=stranger)


async def test_a_front_proxy_that_names_nobody_speaks_for_nobody(face: Face) -> None:
    assert (await face.as_proxy(QUEUE, {}))[0] == 401


async def test_tokens_are_reviewed_once_for_a_while(face: Face, cluster: support.Cluster) -> None:
    cluster.users["good"] = {"username": "hpa", "uid": "7", "groups": ["g"], "extra": {"scope": ["a"]}}
    for _ in range(3):
        assert (await face.get(QUEUE, {"Authorization": "Bearer good"}))[0] == 200
        assert (await face.get(QUEUE, {"Authorization": "Bearer bad"}))[0] == 401
    assert sum("tokenreviews" in each for each in cluster.calls) == 2
    assert sum("subjectaccessreviews" in each for each in cluster.calls) == 1


async def test_rights_are_asked_for_each_metric_and_user(face: Face, cluster: support.Cluster) -> None:
    await face.as_proxy(QUEUE)
    await face.as_proxy(QUEUE, {"X-Remote-User": "mallory"})
    await face.as_proxy(QUEUE)
    assert sum("subjectaccessreviews" in each for each in cluster.calls) == 2
    status, body = await face.as_proxy(QUEUE, {"X-Remote-User": "mallory"})
    assert status == 403
    assert "mallory" in body["message"]


async def test_an_api_server_that_does_not_answer_is_said_and_allows_nobody(
    face: Face, cluster: support.Cluster
) -> None:
    cluster.refuse_with = 500
    assert (await face.as_proxy(QUEUE))[0] == 503
    cluster.refuse_with = 403
    assert (await face.as_proxy(QUEUE))[0] == 503


async def test_health_needs_no_name(face: Face) -> None:
    for path in ("/healthz", "/livez", "/readyz"):
        assert (await face.get(path))[0] == 200


async def test_a_renewed_certificate_is_shown_without_a_restart(face: Face) -> None:
    other = issuing.issue(["127.0.0.1"], certificates_now())
    face.opened.show(certificates.Shown(certificate=other.serving.certificate, key=other.serving.key, ca=other.trusted))
    assert (await face.get("/healthz", ssl_=face.context(trusted=other.trusted)))[0] == 200
    with pytest.raises(aiohttp.ClientError):
        await face.get("/healthz")


async def test_another_authority_of_front_proxies_is_believed_at_once(
    face: Face, api: kube.Kube, cluster: support.Cluster
) -> None:
    heard: asyncio.Queue[front_proxy.Trust] = asyncio.Queue()
    follower = trust.Follower(api, fake_clock.FakeClock(), heard.put_nowait)
    running = asyncio.create_task(follower.run())
    first = await asyncio.wait_for(heard.get(), 30)
    newer = trustme.CA(key_type=trustme.KeyType.ECDSA)
    await cluster.put(front_proxy.CONFIG_MAP, support.config_map(newer.cert_pem.bytes().decode(), names=("proxy-2",)))
    second = await asyncio.wait_for(heard.get(), 30)
    assert (first.allowed_names, second.allowed_names) == (("front-proxy-client",), ("proxy-2",))
    face.opened._server.trust(second)
    assert (await face.get(QUEUE, USER, ssl_=face.context("proxy-2", newer)))[0] == 200
    with pytest.raises(aiohttp.ClientError):
        await face.as_proxy(QUEUE)
    running.cancel()
    await asyncio.wait([running])


async def test_the_group_is_registered_with_our_authority(face: Face, cluster: support.Cluster) -> None:
    made = cluster.objects[registration.PATH]
    assert made["spec"]["service"] == {"namespace": "tms", "name": "tms-server", "port": 443}
    assert made["metadata"]["labels"] == {registration.MANAGED_BY: "tms", registration.INSTALLATION: "i-1"}
    assert face.opened.state.holder is registration.Holder.OURS
    assert not face.opened.scales_itself
