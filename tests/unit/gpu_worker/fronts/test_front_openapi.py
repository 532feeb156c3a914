"""The description of the HTTP API names every route, and refers to nothing that is not there."""

from __future__ import annotations

import json
import re

from gpu_worker.http import messages, openapi, routes

FOUND = openapi.document("2.0")


def test_every_route_is_described() -> None:
    described = {(path, verb.upper().encode()) for path, operations in FOUND["paths"].items() for verb in operations}
    for verbs, pattern, _endpoint in routes.PATTERNS:
        for verb in verbs:
            assert (f"/{pattern}", verb) in described, pattern
    assert set(openapi._CALLS) == set(routes.Endpoint) - {routes.Endpoint.METRICS}


def test_every_described_path_is_a_route() -> None:
    for path, operations in FOUND["paths"].items():
        filled = re.sub(r"{\w+}", "1", path).encode()
        route = routes.api(filled)
        assert route is not None, path
        assert {verb.upper().encode() for verb in operations} == set(route.verbs)


def test_operations_have_names_of_their_own() -> None:
    names = [each["operationId"] for operations in FOUND["paths"].values() for each in operations.values()]
    assert len(names) == len(set(names))


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(FOUND)
    used = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert used <= set(FOUND["components"]["schemas"])


def test_every_error_of_the_engine_has_a_described_status() -> None:
    operation = FOUND["paths"]["/v2/models/{model}/infer"]["post"]
    assert {str(status) for status in messages._STATUS.values()} <= set(operation["responses"])
