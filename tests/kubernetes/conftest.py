"""Fixtures of the tests that run inside a test cluster. Outside of one, nothing here is collected."""

from __future__ import annotations

import collections.abc
import contextlib
import os

import kubernetes
import pytest

from tests.kubernetes import charts, several
from tests.kubernetes import fleet as fleets
from tests.kubernetes.cluster import client as cluster_client
from tests.support import postgres

_WAIT_S = 30

collect_ignore_glob = [] if cluster_client.VARIABLE in os.environ else ["*"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "disruptive: stops a program that all other tests need; runs after them, alone")


@pytest.fixture(scope="session")
def cluster() -> cluster_client.Cluster:
    """The cluster around this test."""
    return cluster_client.Cluster.current()


@pytest.fixture
def api(cluster: cluster_client.Cluster) -> collections.abc.Iterator[kubernetes.client.ApiClient]:
    """The administrator's client."""
    with kubernetes.config.new_client_from_config(str(cluster.kubeconfig)) as client:  # type: ignore[no-untyped-call]  # theirs
        yield client


@pytest.fixture
def namespace(api: kubernetes.client.ApiClient) -> collections.abc.Iterator[str]:
    """The name of a fresh Kubernetes namespace that pods can be made in. It is deleted after the test, in its own time."""
    with _fresh_namespace(api) as name:
        yield name


@pytest.fixture(scope="session")
def place(
    cluster: cluster_client.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> collections.abc.Iterator[fleets.Place]:
    """A namespace with the rights that the chart gives its server; made once, for all servers that tests start there."""
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(kubernetes.config.new_client_from_config(str(cluster.kubeconfig)))  # type: ignore[no-untyped-call]  # theirs
        namespace = stack.enter_context(_fresh_namespace(api))
        helm = stack.enter_context(charts.helm(str(cluster.kubeconfig), namespace))
        yield fleets.place(cluster, tmp_path_factory.mktemp("place"), helm, api)


@pytest.fixture(scope="session")
def shared_fleet(
    place: fleets.Place, tmp_path_factory: pytest.TempPathFactory
) -> collections.abc.Iterator[fleets.Fleet]:
    """The one server of most tests."""
    with fleets.running(place, tmp_path_factory.mktemp("fleet")) as running:
        yield running


@pytest.fixture
def fleet(shared_fleet: fleets.Fleet) -> collections.abc.Iterator[fleets.Fleet]:
    """The whole system. After each test nothing may be left of what it leased: no orphan in the cluster."""
    yield shared_fleet
    shared_fleet.sweep()


@pytest.fixture(scope="module")
def several_servers(
    cluster: cluster_client.Cluster, postgres_server: postgres.Server, tmp_path_factory: pytest.TempPathFactory
) -> collections.abc.Iterator[several.Installed]:
    """The chart with several servers, for the tests of one file."""
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(kubernetes.config.new_client_from_config(str(cluster.kubeconfig)))  # type: ignore[no-untyped-call]  # theirs
        where = several.Where(
            cluster, api, stack.enter_context(_fresh_namespace(api)), tmp_path_factory.mktemp("several")
        )
        database = postgres_server.create()
        stack.callback(postgres_server.drop, database)
        yield stack.enter_context(several.installed(where, postgres_server.url(database)))


@pytest.fixture(scope="session")
def postgres_server() -> collections.abc.Iterator[postgres.Server]:
    """Where pods see it, too: each has a /tmp of its own."""
    with postgres.serve("/var/tmp") as server:
        yield server


@contextlib.contextmanager
def _fresh_namespace(api: kubernetes.client.ApiClient) -> collections.abc.Iterator[str]:
    core = kubernetes.client.CoreV1Api(api)
    metadata = kubernetes.client.V1ObjectMeta(generate_name="test-")
    made = core.create_namespace(kubernetes.client.V1Namespace(metadata=metadata))
    assert made.metadata is not None
    name = str(made.metadata.name)
    _wait_for_service_account(core, name)
    try:
        yield name
    finally:
        core.delete_namespace(name)


def _wait_for_service_account(core: kubernetes.client.CoreV1Api, namespace: str) -> None:
    """Without its default service account a namespace refuses pods."""
    watch = kubernetes.watch.Watch()  # type: ignore[no-untyped-call]  # theirs
    accounts = watch.stream(core.list_namespaced_service_account, namespace, timeout_seconds=_WAIT_S)  # type: ignore[no-untyped-call]  # theirs
    for event in accounts:
        if event["object"].metadata.name == "default":
            return
    pytest.fail(f"namespace {namespace} got no service account within {_WAIT_S} s")
