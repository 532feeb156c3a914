"""Values survive their rows; documents keep their form; what a newer server wrote is refused."""

from __future__ import annotations

import datetime as dt
import json
import typing
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.support import stores
from tms_server.model import errors, group, lease, pool, resources, source
from tms_server.store import documents, mapping

# What a request can carry: UTF-8 text, 64-bit numbers, times of the calendar, spans of a duration.
TEXT = st.text(max_size=20)
NUMBER = st.integers(-(2**63), 2**63 - 1)
TIME = st.datetimes(timezones=st.just(dt.UTC))
SPAN = st.timedeltas()
LABELS = st.dictionaries(TEXT, TEXT, max_size=3)

for plain, strategy in ((str, TEXT), (int, NUMBER), (dt.datetime, TIME), (dt.timedelta, SPAN)):
    st.register_type_strategy(plain, strategy)


def _values(type_: type[Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Every field is drawn, those with a default too."""
    hints = typing.get_type_hints(type_)
    return st.builds(type_, **{name: fields.get(name, st.from_type(hint)) for name, hint in hints.items()})


FILES = st.lists(_values(source.SourceFile), max_size=2).map(tuple)
SOURCES = st.lists(_values(source.ModelSource, files=FILES), max_size=2).map(tuple)
WORKER = _values(resources.WorkerSpec, resources=_values(resources.Resources))
SPEC = _values(
    lease.LeaseSpec,
    models=st.lists(_values(lease.ModelReference), max_size=2).map(tuple),
    placement=st.one_of(_values(lease.InPool), st.builds(lease.Dedicated, WORKER)),
    times=_values(lease.Times),
    labels=LABELS,
    sharing=_values(lease.Sharing),
)
LEASE = _values(
    lease.Lease,
    spec=SPEC,
    sources=SOURCES,
    conditions=st.lists(_values(lease.Condition), max_size=2).map(tuple),
    end=st.none() | _values(lease.LeaseEnd),
)
GROUP = _values(group.WorkerGroup, spec=WORKER)
POOL = _values(pool.Pool, spec=_values(pool.PoolSpec, worker=WORKER))
REPORT = _values(group.GroupReport, models=st.lists(_values(group.ModelReport, files=FILES), max_size=2).map(tuple))

Law = tuple[st.SearchStrategy[Any], Callable[[Any], dict[str, Any]], Callable[[Any], Any]]
LAWS: dict[str, Law] = {
    "lease": (LEASE, lambda value: mapping.lease_columns(value, "digest"), mapping.lease_value),
    "event": (_values(lease.LeaseEvent), mapping.event_columns, mapping.event_value),
    "name": (_values(lease.NameBinding), mapping.name_columns, mapping.name_value),
    "pool": (POOL, mapping.pool_columns, mapping.pool_value),
    "group": (GROUP, mapping.group_columns, mapping.group_value),
    "assignment": (_values(group.Assignment), mapping.assignment_columns, mapping.assignment_value),
    "report": (REPORT, mapping.report_columns, mapping.report_value),
    "measurement": (_values(group.Measurement), mapping.measurement_columns, mapping.measurement_value),
    "endpoint": (
        _values(resources.Endpoint),
        lambda value: mapping.endpoint_columns("owner", value),
        mapping.endpoint_value,
    ),
}


@pytest.mark.parametrize("name", LAWS)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=50, suppress_health_check=[hypothesis.HealthCheck.too_slow], deadline=None)
def test_a_value_comes_back_from_its_row(name: str, data: st.DataObject) -> None:
    strategy, columns, value_of = LAWS[name]
    value = data.draw(strategy)
    row = json.loads(json.dumps(columns(value)))
    assert value_of(row) == value


@hypothesis.given(time=st.datetimes(timezones=st.timezones()))
def test_times_of_other_zones_keep_their_instant(time: dt.datetime) -> None:
    assert documents.from_us(documents.to_us(time)) == time.astimezone(dt.UTC)


def test_the_form_of_a_document_is_kept() -> None:
    # Rows in users' databases look like this: a change here needs a new version and a reader of the old one.
    spec = lease.LeaseSpec(
        models=(lease.ModelReference(name="m", uri="file:///m", framework=source.Framework.ONNXRUNTIME),),
        placement=lease.Dedicated(resources.WorkerSpec(image="worker:1", resources=resources.Resources(gpus=1))),
        labels={"team": "a"},
        sharing=lease.Sharing(not_with=("team=b",)),
    )
    assert documents.dump(lease.LeaseSpec, spec) == {
        "v": 1,
        "value": {
            "models": [
                {
                    "name": "m",
                    "uri": "file:///m",
                    "framework": "onnxruntime",
                    "declared_bytes": 0,
                    "config_override": "",
                }
            ],
            "placement": {
                "Dedicated": {
                    "worker": {
                        "command": "",
                        "image": "worker:1",
                        "resources": {"gpus": 1, "cpu_milli": 0, "memory_bytes": 0},
                        "profile": "",
                    },
                    "replicas": 1,
                }
            },
            "times": {
                "hold": 600_000_000,
                "activity_window": 600_000_000,
                "max_lifetime": None,
                "pending_timeout": 3_600_000_000,
                "renewal": "on_activity",
            },
            "priority": 0,
            "labels": {"team": "a"},
            "sharing": {"share_with": [], "not_with": ["team=b"], "exclusive": False},
            "parent_id": None,
            "autoscaling": None,
        },
    }


def test_a_field_that_an_older_document_lacks_takes_its_default() -> None:
    old = {"v": 1, "value": {"worker": {"command": "w"}, "max_workers": 9}}
    assert documents.load(pool.PoolSpec, old) == pool.PoolSpec(worker=resources.WorkerSpec(command="w"), max_workers=9)


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": {"v": 2, "value": {}}},
        {"spec": {}},
        {"conditions": {"v": 1, "value": [{"colour": "red"}]}},
        {"spec": {"v": 1, "value": {"placement": {"Elsewhere": {}}}}},
        {"state": "DREAMING"},
    ],
)
def test_a_row_of_a_newer_server_is_refused_with_the_reason(changes: dict[str, Any]) -> None:
    row = mapping.lease_columns(stores.new_lease(1), "digest") | changes
    with pytest.raises(errors.FailedPrecondition, match="run the server that wrote it"):
        mapping.lease_value(row)


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(TypeError):
        documents.to_us(stores.NOW.replace(tzinfo=None))


def test_a_type_without_a_form_is_refused() -> None:
    with pytest.raises(TypeError, match="float"):
        documents.codec(float)
