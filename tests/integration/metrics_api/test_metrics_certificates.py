"""Certificates that several servers share: made once, renewed in time, never taken from others."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import datetime as dt

import pytest
from cryptography import x509

from tests.integration.metrics_api import conftest as support
from tms_server.metrics_api import certificates, issuing, kube
from tms_server.model import errors
from tms_server.testing import clock as fake_clock

PLACE = certificates.Place(
    namespace="tms", names=("tms.tms.svc", "10.0.0.7"), installation="i-1", workers_namespace="models"
)
SECRET = "/api/v1/namespaces/tms/secrets/tms-serving"
CONFIG_MAP = "/api/v1/namespaces/models/configmaps/tms-ca"


def server(api: kube.Kube, clock: fake_clock.FakeClock, **place: object) -> certificates.Certificates:
    return certificates.Certificates(api, dataclasses.replace(PLACE, **place), clock)  # type: ignore[arg-type]  # the tests name the fields


def parsed(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


async def test_many_servers_agree_on_one_certificate(api: kube.Kube, cluster: support.Cluster) -> None:
    clock = fake_clock.FakeClock()
    servers = [server(api, clock) for _ in range(4)]
    await asyncio.gather(*(each.refresh() for each in servers))
    assert len({each.current.certificate for each in servers}) == 1
    assert cluster.objects[CONFIG_MAP]["data"] == {"ca.crt": servers[0].current.ca}
    certificate, authority = parsed(servers[0].current.certificate), parsed(servers[0].current.ca)
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each.value) for each in names] == list(PLACE.names)
    assert servers[0].current.key not in repr(servers[0].current)


async def test_a_certificate_is_renewed_before_it_ends_and_everybody_is_told(
    api: kube.Kube, cluster: support.Cluster
) -> None:
    clock = fake_clock.FakeClock()
    first, second = server(api, clock), server(api, clock)
    await first.refresh()
    await second.refresh()
    told: list[certificates.Shown] = []
    second.subscribe(told.append)
    before = first.current
    assert await first.refresh() == clock.now() + certificates.RECHECK
    clock.advance(issuing.SERVING_LIFE * 2 / 3)
    due = await first.refresh()
    assert first.current != before
    assert parsed(first.current.certificate).not_valid_after_utc > clock.now() + issuing.SERVING_LIFE - dt.timedelta(1)
    assert first.current.ca == before.ca
    assert due > clock.now()
    await second.refresh()
    assert told == [first.current]
    await second.refresh()
    assert len(told) == 1


async def test_a_new_authority_is_trusted_beside_the_old_one(api: kube.Kube, cluster: support.Cluster) -> None:
    clock = fake_clock.FakeClock()
    only = server(api, clock)
    await only.refresh()
    old = only.current.ca
    clock.advance(issuing.AUTHORITY_LIFE * 2 / 3)
    await only.refresh()
    assert old in only.current.ca
    assert cluster.objects[CONFIG_MAP]["data"]["ca.crt"] == only.current.ca
    newest = parsed(only.current.ca.removesuffix(old))
    parsed(only.current.certificate).verify_directly_issued_by(newest)


async def test_an_authority_that_somebody_took_away_is_published_again(
    api: kube.Kube, cluster: support.Cluster
) -> None:
    only = server(api, fake_clock.FakeClock())
    await only.refresh()
    published = cluster.objects.pop(CONFIG_MAP)
    await only.refresh()
    assert cluster.objects[CONFIG_MAP]["data"] == published["data"]
    writes = [each for each in cluster.calls if not each.startswith("GET")]
    await only.refresh()
    assert [each for each in cluster.calls if not each.startswith("GET")] == writes


async def test_another_name_is_certified_at_once(api: kube.Kube, cluster: support.Cluster) -> None:
    clock = fake_clock.FakeClock()
    await server(api, clock).refresh()
    more = server(api, clock, names=(*PLACE.names, "tms.example.com"))
    await more.refresh()
    names = parsed(more.current.certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "tms.example.com" in names.get_values_for_type(x509.DNSName)


async def test_what_is_somebody_elses_is_left(api: kube.Kube, cluster: support.Cluster) -> None:
    await server(api, fake_clock.FakeClock(), installation="i-2").refresh()
    before = dict(cluster.objects)
    with pytest.raises(errors.FailedPrecondition, match="NameTaken"):
        await server(api, fake_clock.FakeClock()).refresh()
    with pytest.raises(errors.FailedPrecondition, match="NameTaken: ConfigMap"):
        await server(api, fake_clock.FakeClock(), secret="other").refresh()
    assert {key: cluster.objects[key] for key in before} == before


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"tls.crt": "aGFsbG8="}, "lacks tls.key"),
        (dict.fromkeys(("tls.crt", "tls.key", "authority.crt", "authority.key"), "%%%"), "is broken"),
        (dict.fromkeys(("tls.crt", "tls.key", "authority.crt", "authority.key"), "aGFsbG8="), "not a certificate"),
    ],
)
async def test_a_broken_secret_is_named_with_the_remedy(
    api: kube.Kube, cluster: support.Cluster, data: dict[str, str], why: str
) -> None:
    labels = {certificates.MANAGED_BY: "tms", certificates.INSTALLATION: "i-1"}
    await cluster.put(SECRET, {"metadata": {"name": "tms-serving", "labels": labels}, "data": data})
    with pytest.raises(errors.FailedPrecondition, match=why):
        await server(api, fake_clock.FakeClock()).refresh()


async def test_a_key_of_another_certificate_is_noticed(api: kube.Kube, cluster: support.Cluster) -> None:
    await server(api, fake_clock.FakeClock()).refresh()
    stranger = issuing.issue(["x"], fake_clock.START).serving.key
    cluster.objects[SECRET]["data"]["tls.key"] = base64.b64encode(stranger.encode()).decode()
    with pytest.raises(errors.FailedPrecondition, match="does not belong"):
        await server(api, fake_clock.FakeClock()).refresh()


async def test_nothing_is_shown_before_it_is_read_and_no_answer_is_said(
    api: kube.Kube, cluster: support.Cluster
) -> None:
    only = server(api, fake_clock.FakeClock())
    with pytest.raises(errors.FailedPrecondition):
        _ = only.current
    cluster.refuse_with = 503
    with pytest.raises(errors.Unavailable):
        await only.refresh()
    cluster.refuse_with = 403
    with pytest.raises(errors.PermissionDenied):
        await only.refresh()
