"""Addresses on the local machine."""

from __future__ import annotations

import ipaddress

import hypothesis
import pytest
from hypothesis import strategies as st

from tms_server.fleet import addresses
from tms_server.model import errors, ids, resources

INSTALLATIONS = st.text(min_size=1).map(ids.InstallationId)
HOME = ids.InstallationId("home")


@hypothesis.given(INSTALLATIONS, st.integers(1, 400))
@hypothesis.settings(max_examples=20, deadline=None)
def test_every_address_is_its_own_and_in_the_network(installation: ids.InstallationId, count: int) -> None:
    taken: list[resources.Endpoint] = []
    for _ in range(count):
        taken.append(addresses.host_endpoint(installation, taken))
    assert len(set(taken)) == count
    for each in taken:
        assert ipaddress.ip_address(each.host) in ipaddress.ip_network("127.64.0.0/10")
        assert each.host.rpartition(".")[2] not in ("0", "255")
        assert (each.http_port, each.grpc_port, each.metrics_port) == (8000, 8001, 8002)


def test_the_same_installation_gets_the_same_address_and_others_their_own() -> None:
    assert addresses.host_endpoint(HOME, ()) == addresses.host_endpoint(HOME, ())
    assert addresses.host_endpoint(HOME, ()) != addresses.host_endpoint(ids.InstallationId("other"), ())


@hypothesis.given(INSTALLATIONS)
def test_ports_are_never_given_twice_and_run_out_loudly(installation: ids.InstallationId) -> None:
    taken: list[resources.Endpoint] = []
    for _ in range(5):
        taken.append(addresses.port_endpoint(installation, taken, 20_000, 20_016))
    ports = [port for each in taken for port in (each.http_port, each.grpc_port, each.metrics_port)]
    assert len(set(ports)) == 15
    assert {20_000 <= port <= 20_016 for port in ports} == {True}
    assert {each.host for each in taken} == {"127.0.0.1"}
    with pytest.raises(errors.ResourceExhausted, match="widen the range"):
        addresses.port_endpoint(installation, taken, 20_000, 20_016)


def test_ports_taken_singly_and_on_other_hosts_are_minded() -> None:
    odd = resources.Endpoint("127.0.0.1", 20_001, 20_005, 20_009)
    elsewhere = resources.Endpoint("127.64.0.1", 20_012, 20_013, 20_014)
    found = addresses.port_endpoint(HOME, (odd, elsewhere), 20_000, 20_014)
    assert found == resources.Endpoint("127.0.0.1", 20_012, 20_013, 20_014)
    with pytest.raises(errors.ResourceExhausted):
        addresses.port_endpoint(HOME, (), 20_000, 20_001)
