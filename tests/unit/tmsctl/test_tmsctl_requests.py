"""lease.yaml and options become one request; what is unknown or wrong is refused by name."""

from __future__ import annotations

import io
import json
import pathlib
import sys
from typing import Any

import pytest
import yaml

from protos.tms.v1 import lease_pb2
from tmsctl import errors, leasefile, leaseoptions, requests, running

EXAMPLE = pathlib.Path(__file__).resolve().parents[3] / "examples" / "lease.yaml"
MODEL = "models: [{name: a, uri: 'model://r/a'}]\n"


def build(worker: dict[str, Any] | None = None, namespace: str | None = None, **given: Any) -> Any:
    options = leaseoptions.LeaseOptions(**given)
    return requests.build(options, leaseoptions.WorkerOptions(**(worker or {})), namespace)


def parse(text: str, directory: pathlib.Path = pathlib.Path()) -> lease_pb2.CreateLeaseRequest:
    return leasefile.parse(text, directory)


def refused(text: str) -> errors.CliError:
    with pytest.raises(errors.CliError) as raised:
        parse(text)
    assert raised.value.code == errors.Exit.INVALID
    return raised.value


def test_the_example_is_read_and_shows_every_key() -> None:
    request = leasefile.load(str(EXAMPLE))
    assert request.models[0].declared_bytes == 64 * 2**20
    assert request.times.hold.seconds == 600
    assert request.times.renewal == lease_pb2.RENEWAL_ON_ACTIVITY
    assert request.labels == {"team": "vision"}
    shown = EXAMPLE.read_text()
    for keys in (
        leasefile.TOP_KEYS,
        leasefile.MODEL_KEYS,
        leasefile.DEDICATED_KEYS,
        leasefile.TIMES_KEYS,
        leasefile.SHARING_KEYS,
        leasefile.AUTOSCALING_KEYS,
        leasefile.METRIC_KEYS,
        leasefile.BEHAVIOR_KEYS,
    ):
        assert [key for key in keys if f"{key}:" not in shown] == []


def test_the_example_with_its_comments_taken_off_is_read_as_well() -> None:
    text = EXAMPLE.read_text().replace("pool: default ", "# ")
    kept = [
        line.replace("# ", "", 1) if line.startswith(("# ", "    # config")) else line for line in text.splitlines()
    ]
    tree = yaml.safe_load("\n".join(line for line in kept[4:] if "config.json" not in line))
    request = parse(yaml.safe_dump(tree))
    assert request.dedicated.worker.command == "tms-worker"
    assert request.dedicated.worker.resources.memory_bytes == 8 * 2**30
    assert request.autoscaling.max_replicas == 3
    assert request.parent_id == "LEASE-ID"


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("modles: []", "modles", "did you mean 'models'"),
        ("models: [{name: a, url: x}]", "models[0].url", "did you mean 'uri'"),
        ("times: {hodl: 1m}", "times.hodl", "did you mean 'hold'"),
        ("times: {hold: 10}", "times.hold", "no duration"),
        ("times: {renewal: never}", "times.renewal", "on_activity, keepalive, manual"),
        ("dedicated: {memory: 8G}", "dedicated.memory", "no size"),
        ("dedicated: {gpus: 1.5}", "dedicated.gpus", "whole number"),
        ("dedicated: {gpus: true}", "dedicated.gpus", "whole number"),
        ("dedicated: {command: a, image: b}", "dedicated.image", "not both"),
        ("{pool: a, dedicated: {}}", "dedicated", "not both"),
        ("labels: {version: 1.0}", "labels.version", "quotes"),
        ("labels: [a]", "labels", "mapping"),
        ("sharing: {exclusive: 3}", "sharing.exclusive", "true or false"),
        ("sharing: {share_with: [1]}", "sharing.share_with[0]", "text"),
        ("models: {}", "models", "list"),
        ("models: [1]", "models[0]", "mapping"),
        ("models: [{config: 3}]", "models[0].config", "mapping"),
        ("models: [{config: {a: .nan}}]", "models[0].config", "JSON"),
        ("models: [{config: {a: 2026-01-01}}]", "models[0].config", "JSON"),
        ("priority: 99999999999", "priority", "32 bits"),
        ("[]", "file", "mapping"),
        ("", "file", "mapping"),
        ("a: b: c", "file", "YAML"),
        ("pool: a\npool: b", "file", "twice"),
        ("? [a]\n: b", "file", "YAML"),
        ("a: &x [*x]", "a", "unknown key"),
        ("models: [{config: &x {a: *x}}]", "models[0].config", "JSON"),
        ("[" * 5000, "file", "YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_the_name_of_its_key(text: str, field: str, said: str) -> None:
    problem = refused(text)
    assert problem.field == field
    assert said in problem.message


def test_configurations_come_from_mappings_and_from_files_beside_it(tmp_path: pathlib.Path) -> None:
    (tmp_path / "c.json").write_text('{"max_batch_size": 8}')
    text = "models: [{name: a, uri: x, config: '@c.json'}, {name: b, uri: x, config: {max_batch_size: 4}}]"
    first, second = parse(text, tmp_path).models
    assert json.loads(first.config_override) == {"max_batch_size": 8}
    assert json.loads(second.config_override) == {"max_batch_size": 4}


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000])
def test_a_configuration_is_one_json_object(tmp_path: pathlib.Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(errors.CliError) as raised:
        parse("models: [{name: a, uri: x, config: '@c.json'}]", tmp_path)
    assert raised.value.field == "models[0].config"


def test_a_file_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(errors.CliError) as raised:
        build(file="/nowhere/lease.yaml")
    assert (raised.value.field, raised.value.code) == ("--file", errors.Exit.USAGE)


def test_standard_input_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(MODEL))
    assert build(file="-").models[0].name == "a"


def test_options_win_over_the_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "lease.yaml"
    file.write_text(MODEL + "name: x\npriority: 1\nlabels: {a: '1', b: '1'}\ntimes: {hold: 1m, window: 1m}\n")
    request = build(
        file=str(file), namespace="ns", name="y", priority=0, label=["b=2"], hold="2m", model=["c=model://r/c"]
    )
    assert (request.namespace, request.name, request.priority) == ("ns", "y", 0)
    assert request.labels == {"a": "1", "b": "2"}
    assert (request.times.hold.seconds, request.times.activity_window.seconds) == (120, 60)
    assert [model.name for model in request.models] == ["c"]


def test_a_pool_given_as_an_option_replaces_the_files_dedicated_worker(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "lease.yaml"
    file.write_text(MODEL + "dedicated: {gpus: 1}\n")
    assert build(file=str(file), pool="p").pool.pool == "p"
    assert build({"gpus": 0}, file=str(file)).dedicated.worker.resources.gpus == 0


def test_without_a_place_the_default_pool_is_asked_for() -> None:
    request = build(model=["a=model://r/a"])
    assert request.WhichOneof("placement") == "pool"
    assert not request.HasField("times")


def test_each_request_has_an_id_of_its_own_unless_one_is_given() -> None:
    first, second = (build(model=["a=model://r/a"]).request_id for _ in range(2))
    assert first != second
    assert build(model=["a=model://r/a"], request_id="mine").request_id == "mine"


def test_a_dedicated_worker_is_described() -> None:
    worker = {"command": "tms-worker", "gpus": 2, "cpus": "1.5", "memory": "1GiB"}
    request = build(worker, model=["a=model://r/a"], dedicated=True)
    assert request.dedicated.worker.command == "tms-worker"
    resources = request.dedicated.worker.resources
    assert (resources.gpus, resources.cpu_milli, resources.memory_bytes) == (2, 1500, 2**30)


def test_sharing_and_clocks_from_options() -> None:
    request = build(
        model=["name=a,uri=model://r/a,bytes=1KiB"],
        share_with=["x"],
        not_with=["k=v"],
        exclusive=True,
        window="5s",
        max_lifetime="1h",
        pending_timeout="1m",
        renewal=leaseoptions.Renewal.MANUAL,
    )
    assert request.models[0].declared_bytes == 1024
    assert (list(request.sharing.share_with), list(request.sharing.not_with)) == (["x"], ["k=v"])
    assert request.sharing.exclusive
    assert request.times.renewal == lease_pb2.RENEWAL_MANUAL
    assert (request.times.max_lifetime.seconds, request.times.pending_timeout.seconds) == (3600, 60)


@pytest.mark.parametrize(
    ("given", "worker", "field"),
    [
        ({}, {}, "--model"),
        ({"model": ["a"]}, {}, "--model"),
        ({"model": ["name=a,uri=b://c,config=@/nowhere"]}, {}, "--model"),
        ({"model": ["a=b://c"], "hold": "1"}, {}, "--hold"),
        ({"model": ["a=b://c"], "label": ["x"]}, {}, "--label"),
        ({"model": ["a=b://c"], "priority": 2**40}, {}, "--priority"),
        ({"model": ["a=b://c"]}, {"gpus": 1}, "--dedicated"),
        ({"model": ["a=b://c"], "dedicated": True, "pool": "p"}, {}, "--dedicated"),
        ({"model": ["a=b://c"], "dedicated": True}, {"memory": "1G"}, "--memory"),
        ({"model": ["a=b://c"], "dedicated": True}, {"cpus": "x"}, "--cpus"),
        ({"model": ["a=b://c"], "dedicated": True}, {"command": "a", "image": "b"}, "--image"),
    ],
)
def test_a_wrong_option_is_named(given: dict[str, Any], worker: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.CliError) as raised:
        build(worker, **given)
    assert (raised.value.field, raised.value.code) == (field, errors.Exit.USAGE)


def test_run_keeps_its_lease_by_keepalive_and_never_asks_for_more_than_it_may() -> None:
    plain, short, said = (
        build(model=["a=b://c"]),
        build(model=["a=b://c"], max_lifetime="30s"),
        build(model=["a=b://c"], hold="1h", renewal=leaseoptions.Renewal.MANUAL),
    )
    for request in (plain, short, said):
        running.keep(request)
    assert (plain.times.hold.seconds, plain.times.renewal) == (120, lease_pb2.RENEWAL_KEEPALIVE)
    assert short.times.hold.seconds == 30
    assert (said.times.hold.seconds, said.times.renewal) == (3600, lease_pb2.RENEWAL_MANUAL)


def test_the_command_finds_the_lease_in_its_environment() -> None:
    lease = lease_pb2.Lease(id="l-1")
    lease.endpoint.host = "127.64.0.2"
    lease.endpoint.http_port, lease.endpoint.grpc_port, lease.endpoint.metrics_port = 8000, 8001, 8002
    assert running.environment(lease, {"HOME": "/h"}) == {
        "HOME": "/h",
        "TMS_LEASE_ID": "l-1",
        "TMS_HTTP_URL": "http://127.64.0.2:8000",
        "TMS_HTTP_ADDRESS": "127.64.0.2:8000",
        "TMS_GRPC_URL": "127.64.0.2:8001",
        "TMS_METRICS_URL": "http://127.64.0.2:8002/metrics",
    }
