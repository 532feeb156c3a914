"""The pure parts of the process backend: pauses, command lines, what is refused, addresses, capacity."""

from __future__ import annotations

import dataclasses
import datetime as dt
import pathlib
import re
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tms_server import clock
from tms_server.backends import changes
from tms_server.backends.processes import addresses, backend, commands, options
from tms_server.fleet import addresses as pure_addresses
from tms_server.model import errors, ids, resources
from tms_server.ports import backend as port

SPEC = port.LaunchSpec(
    group_id=ids.GroupId("g-1"),
    namespace=ids.DEFAULT_NAMESPACE,
    worker=resources.WorkerSpec(),
    endpoint=resources.Endpoint("127.64.0.1", 8000, 8001, 8002),
    token="t",
)
INSTALLATION = ids.InstallationId("i-1")


def made(**changed: object) -> options.Options:
    base = options.Options(data_dir=pathlib.Path("/data"), installation_id=INSTALLATION, server="127.0.0.1:1")
    return dataclasses.replace(base, **changed)  # type: ignore[arg-type] # checked by the tests' use


@given(st.integers(1, 10_000), st.floats(1, 100))
def test_pauses_never_shrink_and_never_pass_the_cap(failures: int, factor: float) -> None:
    backoff = options.Backoff(factor=factor)
    assert backoff.first <= backoff.pause(failures) <= backoff.pause(failures + 1) <= backoff.longest


def test_pauses_double() -> None:
    backoff = options.Backoff(first=dt.timedelta(seconds=1), longest=dt.timedelta(seconds=5))
    assert [backoff.pause(failures).total_seconds() for failures in (1, 2, 3, 4)] == [1, 2, 4, 5]


@given(st.text(), st.lists(st.text(), min_size=1))
def test_a_value_fills_its_placeholder_and_adds_no_argument(value: str, template: list[str]) -> None:
    endpoint = resources.Endpoint(value, 1, 2, 3)
    argv = commands.worker_argv(
        made(commands={"tms-worker": ("program", "{host}", *template)}),
        dataclasses.replace(SPEC, endpoint=endpoint),
        pathlib.Path("/g"),
    )
    assert argv[:2] == ("program", value)
    assert len(argv) == len(template) + 2


def test_the_default_worker_speaks_the_flags_of_the_usual_server() -> None:
    argv = commands.worker_argv(made(), SPEC, pathlib.Path("/data/groups/g-1"))
    assert argv[3:] == (
        "gpu_worker",
        "--model-repository=/data/groups/g-1/models",
        "--model-control-mode=explicit",
        "--http-address=127.64.0.1",
        "--http-port=8000",
        "--grpc-address=127.64.0.1",
        "--grpc-port=8001",
        "--metrics-address=127.64.0.1",
        "--metrics-port=8002",
        "--control-token-file=/data/groups/g-1/token",
    )


def test_the_default_sidecar_is_told_where_everything_is() -> None:
    argv = commands.sidecar_argv(made(), SPEC, pathlib.Path("/data/groups/g-1"))
    assert argv[3:] == (
        "sidecar",
        "--server=127.0.0.1:1",
        "--worker-id=g-1",
        "--token-file=/data/groups/g-1/token",
        "--worker-endpoint=127.64.0.1:8000:8001:8002",
        "--model-repository=/data/groups/g-1/models",
        "--data-dir=/data/groups/g-1/sidecar",
        "--cache-dir=/data/cache",
    )
    bounded = commands.sidecar_argv(made(cache_bytes=7), SPEC, pathlib.Path("/data/groups/g-1"))
    assert bounded == (*argv, "--cache-budget=7")


@pytest.mark.parametrize(
    ("worker", "field"),
    [
        (resources.WorkerSpec(image="a/b:1"), "image"),
        (resources.WorkerSpec(command="other"), r"command.*tms-worker"),
        (resources.WorkerSpec(resources=resources.Resources(gpus=2)), r"resources\.gpus"),
        (resources.WorkerSpec(resources=resources.Resources(cpu_milli=1)), r"resources\.cpu_milli"),
        (resources.WorkerSpec(resources=resources.Resources(memory_bytes=100)), r"resources\.memory_bytes"),
        (resources.WorkerSpec(resources=resources.Resources(memory_bytes=-1)), "resources"),
    ],
)
def test_what_cannot_run_is_refused_by_its_field(worker: resources.WorkerSpec, field: str) -> None:
    refused = commands.refuse(made(gpus=("GPU-a",), margin_bytes=100), worker)
    assert refused is not None
    assert re.search(field, refused)


def test_capacity_is_what_was_asked_for_less_the_margin() -> None:
    runs = backend.ProcessBackend(made(margin_bytes=10, default_memory_bytes=50), clock.SystemClock())
    assert runs.capacity_bytes(resources.WorkerSpec()) == 40
    assert runs.capacity_bytes(resources.WorkerSpec(resources=resources.Resources(memory_bytes=2**40))) == 2**40 - 10


@pytest.mark.parametrize(
    "wrong", [{"factor": 0.5}, {"factor": 101.0}, {"first": dt.timedelta(0)}, {"first": dt.timedelta(days=1)}]
)
def test_a_backoff_that_would_not_back_off_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="backoff"):
        options.Backoff(**wrong)


@pytest.mark.parametrize(
    ("changed", "setting"),
    [
        ({"default_command": "other"}, "default_command"),
        ({"commands": {"tms-worker": ()}}, "commands"),
        ({"sidecar_command": ("",)}, "sidecar_command"),
        ({"margin_bytes": 2**40}, "default_memory_bytes"),
        ({"margin_bytes": -1}, "margin_bytes"),
        ({"gpus": ("a", "a")}, "gpus"),
    ],
)
def test_settings_that_cannot_work_are_refused(changed: dict[str, object], setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        made(**changed)


def test_own_ports_stand_in_where_the_host_routes_no_such_address() -> None:
    def unrouted(installation: ids.InstallationId, taken: object) -> resources.Endpoint:
        return resources.Endpoint("192.0.2.1", 8000, 8001, 8002)

    assert addresses._free(unrouted, INSTALLATION, ()) is None
    own = addresses._free(pure_addresses.port_endpoint, INSTALLATION, ())
    assert own is not None
    with socket.create_server((own.host, own.metrics_port)):
        other = addresses._free(pure_addresses.port_endpoint, INSTALLATION, ())
    assert other is not None
    assert other != own


def test_a_choice_that_stays_busy_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port_number = listener.getsockname()[1]

        def busy(installation: ids.InstallationId, taken: object) -> resources.Endpoint:
            return resources.Endpoint("127.0.0.1", port_number, port_number, port_number)

        assert addresses._free(busy, INSTALLATION, ()) is None


async def test_changes_between_two_steps_are_one_and_none_is_lost() -> None:
    told = changes.Changes()
    steps = told.watch()
    told.notify()
    told.notify()
    await anext(steps)
    told.notify()
    await anext(steps)
    told.close()
    assert await anext(steps, "over") == "over"


def test_the_errors_of_a_full_range_name_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_TRIES", 0)
    with pytest.raises(errors.ResourceExhausted, match="lease/l-1"):
        addresses.publish("lease/l-1", INSTALLATION, ())
