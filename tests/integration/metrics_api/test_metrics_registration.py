"""Whose external.metrics.k8s.io is: ours is kept, that of others is left."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.integration.metrics_api import conftest as support
from tms_server.metrics_api import kube, registration
from tms_server.metrics_api.registration import Holder
from tms_server.model import errors

US = registration.Service(namespace="tms", name="tms-server")


def of(api: kube.Kube, installation: str = "i-1") -> registration.Registration:
    return registration.Registration(api, US, installation)


async def theirs(cluster: support.Cluster, service: dict[str, Any] | None, **labels: str) -> None:
    spec = {"group": "external.metrics.k8s.io", "service": service}
    await cluster.put(registration.PATH, {"metadata": {"name": registration.NAME, "labels": labels}, "spec": spec})


async def test_it_is_made_once_and_its_authority_follows(api: kube.Kube, cluster: support.Cluster) -> None:
    ours = of(api)
    assert ours.state.holder is Holder.UNKNOWN
    assert (await ours.keep("one")).holder is Holder.OURS
    revision = cluster.objects[registration.PATH]["metadata"]["resourceVersion"]
    await of(api).keep("one")
    assert cluster.objects[registration.PATH]["metadata"]["resourceVersion"] == revision
    await ours.keep("two")
    assert base64.b64decode(cluster.objects[registration.PATH]["spec"]["caBundle"]) == b"two"


@pytest.mark.parametrize("service", [{"namespace": "keda", "name": "keda-metrics"}, None])
async def test_another_providers_is_never_touched(
    api: kube.Kube, cluster: support.Cluster, service: dict[str, Any] | None
) -> None:
    await theirs(cluster, service)
    before = cluster.objects[registration.PATH]
    ours = of(api)
    state = await ours.keep("ca")
    assert state.holder is Holder.OTHER
    assert "TMS scales by itself" in state.message
    assert cluster.objects[registration.PATH] is before


async def test_one_installed_by_a_chart_gets_its_authority_and_nothing_else(
    api: kube.Kube, cluster: support.Cluster
) -> None:
    await theirs(cluster, {"namespace": "tms", "name": "tms-server"}, **{registration.MANAGED_BY: "Helm"})
    assert (await of(api).keep("ca")).holder is Holder.OURS
    kept = cluster.objects[registration.PATH]
    assert kept["metadata"]["labels"] == {registration.MANAGED_BY: "Helm"}
    assert kept["spec"]["caBundle"] == base64.b64encode(b"ca").decode()
    await of(api).keep("other", own_ca=False)
    assert kept["spec"]["caBundle"] == base64.b64encode(b"ca").decode()


async def test_without_the_wish_to_register_nobody_holds_it(api: kube.Kube, cluster: support.Cluster) -> None:
    assert (await of(api).keep("ca", manage=False)).holder is Holder.NOBODY
    assert cluster.objects == {}


async def test_a_missing_right_is_said(api: kube.Kube, cluster: support.Cluster) -> None:
    cluster.refuse_with = 403
    state = await of(api).keep("ca")
    assert state.holder is Holder.UNKNOWN
    assert registration.NAME in state.message


async def test_where_it_is_gone_and_may_not_be_made_nobody_holds_it(api: kube.Kube, cluster: support.Cluster) -> None:
    cluster.refused_methods.add("POST")
    state = await of(api).keep("ca")
    assert state.holder is Holder.NOBODY
    assert "may not make it" in state.message
    cluster.refused_methods.clear()
    assert (await of(api).keep("ca")).holder is Holder.OURS


async def test_only_the_object_that_was_looked_at_is_changed(api: kube.Kube, cluster: support.Cluster) -> None:
    await of(api).keep("one")
    cluster.objects[registration.PATH]["metadata"]["uid"] = "before"
    looked_at = await api.get(registration.PATH)
    cluster.objects[registration.PATH]["metadata"]["uid"] = "after"
    for labels in (looked_at["metadata"]["labels"], {registration.MANAGED_BY: "Helm"}):
        found = {**looked_at, "metadata": {**looked_at["metadata"], "labels": labels}}
        with pytest.raises(errors.Conflict):
            await api.apply(registration.PATH, of(api)._patch(found, "two"))
    assert base64.b64decode(cluster.objects[registration.PATH]["spec"]["caBundle"]) == b"one"
