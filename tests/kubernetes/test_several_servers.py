"""Three servers of the chart on one PostgreSQL: any answers, one decides, and none of them is missed when it goes."""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import threading
import time

import helm_python
import kubernetes
import pytest

from protos.tms.v1 import lease_pb2
from tests.kubernetes import clients as client_programs
from tests.kubernetes import several
from tests.kubernetes.cluster import client as cluster_client
from tests.kubernetes.cluster import waiting
from tests.support import postgres
from tms_server.reconcilers import election
from tms_server.store import migrate

# Three servers, workers and load are started.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

TAKEN_OVER_S = election.TIME_TO_LIVE.total_seconds() + 4
NEWER = "f00d"
"""A schema that this version does not know."""


@pytest.fixture
def there(several_servers: several.Installed) -> collections.abc.Iterator[several.Installed]:
    yield several_servers
    several_servers.release_all()


def test_any_server_answers_one_leads_and_another_takes_over(there: several.Installed) -> None:
    with there.servers() as servers:
        leases = [each.acquire() for each in servers]
        for lease in leases:
            assert [each.state(lease) for each in servers] == [several.ACTIVE] * several.SERVERS
        assert [_said(each) for each in servers] == [_said(servers[0])] * several.SERVERS
        assert [each.leads() for each in servers] == [True, False, False]
        with client_programs.running(leases[0].endpoint.host) as clients:
            _metrics_are_answered_by_all(there, servers, leases[0])
            _leader_is_lost_during_a_create(there, servers, leases)
            _others_take_over(there, leases)
            assert clients.onward(2.0).failed == []


def test_servers_are_rolled_without_a_failed_call_or_request(there: several.Installed) -> None:
    there.save_target()
    with there.servers() as servers:
        lease = servers[0].acquire()
        before = {each.pod for each in servers}
    with client_programs.running(lease.endpoint.host) as clients, _calling(there) as failed:
        there.upgrade()
        with there.servers() as servers:
            assert before.isdisjoint({each.pod for each in servers})
            assert servers[1].state(lease) == several.ACTIVE
            waiting.until(lambda: sum(each.sidecars() for each in servers), lambda count: count == 1)
        assert clients.onward(2.0).failed == []
    assert failed == []
    assert there.groups() == there.workers() == [lease.worker_group]


def test_the_hook_migrates_and_going_back_over_a_change_of_the_schema_is_refused(
    cluster: cluster_client.Cluster,
    api: kubernetes.client.ApiClient,
    namespace: str,
    tmp_path: pathlib.Path,
    postgres_server: postgres.Server,
) -> None:
    database = postgres_server.create()
    schema, where = "SELECT version_num FROM alembic_version", several.Where(cluster, api, namespace, tmp_path)
    with several.installed(where, postgres_server.url(database), servers=1) as there:
        assert "migrate_at_start = false" in there.settings()
        assert postgres_server.execute(schema, database) == [(migrate.head(),)]
        there.upgrade()
        pods = there.ready_pods()

        postgres_server.execute(f"UPDATE alembic_version SET version_num = '{NEWER}'", database)
        with pytest.raises(helm_python.HelmError, match="tms-migrate"):
            there.helm.rollback("tms", 1)
        said = there.migration_log()
        assert f"schema {NEWER}" in said
        assert "run the newer server, or put back the backup" in said
        assert there.ready_pods() == pods
        with there.servers() as servers:
            assert servers[0].workers() == []
    postgres_server.drop(database)


def _metrics_are_answered_by_all(
    there: several.Installed, servers: list[several.Server], lease: lease_pb2.Lease
) -> None:
    token = there.where.cluster.token("root")
    for each in servers:
        waiting.until(
            lambda asked=each: asked.metric("tms_request_rate", there.namespace, lease, token),  # type: ignore[misc]  # mypy infers no type for defaults
            lambda values: values and values[0] not in ("0", "0m"),
        )


def _leader_is_lost_during_a_create(
    there: several.Installed, servers: list[several.Server], leases: list[lease_pb2.Lease]
) -> None:
    """Without a goodbye; what a follower was asked meanwhile is done by whoever leads next."""
    leader, follower, other = servers
    made: list[lease_pb2.Lease] = []
    creating = threading.Thread(target=lambda: made.append(follower.acquire(request_id="during")))
    began = time.monotonic()
    there.where.faults.kill_container(f"{there.namespace}/{leader.pod}", "server")
    there.core.delete_namespaced_pod(leader.pod, there.namespace, grace_period_seconds=0)
    creating.start()
    waiting.until(lambda: [follower.leads(), other.leads()], lambda leading: sum(leading) == 1, several.PATIENCE_S)
    assert time.monotonic() - began < TAKEN_OVER_S
    creating.join()
    assert [each.request_id for each in made] == ["during"]
    assert follower.leases.Create(several.request(request_id="during")).id == made[0].id
    leases += made


def _others_take_over(there: several.Installed, leases: list[lease_pb2.Lease]) -> None:
    """Nothing is doubled or lost, sidecars speak again, and all servers say the same."""
    with there.servers() as servers:
        waiting.until(lambda: sum(each.sidecars() for each in servers), lambda count: count == len(leases))
        for lease in leases:
            assert [each.state(lease) for each in servers] == [several.ACTIVE] * several.SERVERS
        groups = sorted(each.worker_group for each in leases)
        assert there.groups() == there.workers() == groups
        assert servers[2].acquire().state == several.ACTIVE


def _said(server: several.Server) -> list[tuple[str, list[str], list[str]]]:
    """What a server tells of the workers, but for times."""
    return sorted((each.id, list(each.lease_ids), [one.id for one in each.replicas]) for each in server.workers())


@contextlib.contextmanager
def _calling(there: several.Installed) -> collections.abc.Iterator[list[str]]:
    """Calls again and again, as users do, in the time of a block; yields what failed."""
    failed: list[str] = []
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            done = there.tmsctl("lease", "list", "-o", "name")
            if done.returncode:
                failed.append(done.stderr)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield failed
    finally:
        over.set()
        caller.join()
