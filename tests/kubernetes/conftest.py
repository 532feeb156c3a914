"""Fixtures of the tests that run inside a test cluster. Outside of one, nothing here is collected."""

from __future__ import annotations

import collections.abc
import os

import kubernetes
import pytest

from tests.kubernetes.cluster import client as cluster_client

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
    core = kubernetes.client.CoreV1Api(api)
    metadata = kubernetes.client.V1ObjectMeta(generate_name="test-")
    made = core.create_namespace(kubernetes.client.V1Namespace(metadata=metadata))
    assert made.metadata is not None
    name = str(made.metadata.name)
    _wait_for_service_account(core, name)
    yield name
    core.delete_namespace(name)


def _wait_for_service_account(core: kubernetes.client.CoreV1Api, namespace: str) -> None:
    """Without its default service account a namespace refuses pods."""
    watch = kubernetes.watch.Watch()  # type: ignore[no-untyped-call]  # theirs
    accounts = watch.stream(core.list_namespaced_service_account, namespace, timeout_seconds=_WAIT_S)  # type: ignore[no-untyped-call]  # theirs
    for event in accounts:
        if event["object"].metadata.name == "default":
            return
    pytest.fail(f"namespace {namespace} got no service account within {_WAIT_S} s")
