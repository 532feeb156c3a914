"""Values with a wrong key or shape are refused before anything is rendered, and the message names the key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest

from deploy.helm import documented, schema
from tests.unit.deploy import charts


def test_the_schema_is_what_its_sources_say() -> None:
    assert schema.FILE.read_text() == schema.text(), "run `python -m deploy.generate`"


def test_every_object_is_closed() -> None:
    open_objects = [path for path, each in _objects(json.loads(schema.FILE.read_text()), "") if not _is_closed(each)]
    assert open_objects == ["/properties/global"]


def test_no_shape_is_for_a_value_that_is_gone() -> None:
    assert set(schema.SHAPES) <= {each.path for each in documented.values()}


@pytest.mark.parametrize("path", [each.path for each in documented.values()])
def test_a_wrong_key_beside_any_value_is_refused_by_name(path: str) -> None:
    *above, _ = path.split(".")
    values: dict[str, Any] = {"wrongKey": 1}
    for section in reversed(above):
        values = {section: values}
    with pytest.raises(helm_python.HelmValuesError, match="wrongKey") as refused:
        charts.render(values)
    assert "/".join(above) in str(refused.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"server": {"replicas": "two"}}, "/server/replicas"),
        ({"server": {"resources": {"limit": {}}}}, "limit"),
        ({"server": {"tolerations": [{"efect": "NoSchedule"}]}}, "efect"),
        ({"service": {"type": "ExternalName"}}, "/service/type"),
        ({"profiles": {"a100": {"nodeSelector": {}}}}, "nodeSelector"),
        ({"profiles": {"A_100": {}}}, "A_100"),
        ({"profiles": {"a": {"topology_spread": [{"maxSkeew": 1}]}}}, "maxSkeew"),
        ({"pools": {"a": {"most": 1}}}, "most"),
        ({"pools": {"a": {"max_workers": 0}}}, "max_workers"),
        ({"leaseTimes": {"hold": "10m"}}, "hold"),
        ({"repositories": {"m": {"claim": "x", "path": "models"}}}, "/repositories/m/path"),
        ({"repositories": {"m": {"bucket": "x", "keys": {"secret_access_key": "x"}}}}, "secret_access_key"),
        ({"settings": {"kubernetes": {"dial": "x"}}}, "dial"),
        ({"settings": {"tls": {}}}, "tls"),
        ({"networkPolicy": {"apiServer": ["example.com"]}}, "/networkPolicy/apiServer/0"),
        ({"images": {"server": {"digest": "latest"}}}, "/images/server/digest"),
    ],
)
def test_wrong_values_are_refused_at_their_place(values: dict[str, Any], words: str) -> None:
    with pytest.raises(helm_python.HelmValuesError) as refused:
        charts.render(values)
    assert words in str(refused.value)


def _objects(tree: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(tree, dict):
        if tree.get("type") == "object":
            yield path, tree
        for key, value in tree.items():
            yield from _objects(value, f"{path}/{key}")


def _is_closed(node: dict[str, Any]) -> bool:
    """Knows its keys, or says what every value is."""
    return node.get("additionalProperties") is False or isinstance(node.get("additionalProperties"), dict)
