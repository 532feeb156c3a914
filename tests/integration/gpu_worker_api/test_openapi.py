"""A live worker, asked what its description allows and what it does not: every answer is one of those described."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from docs.pages import openapi as page
from gpu_worker.http import openapi
from tests.support import onnx_models, worker_process

EXAMPLES = 12
MODELS = ["ident", "text", "none"]
REGIONS = ["r", "none"]
HIDDEN = "Internal error; the server's log says more"


def document() -> dict[str, Any]:
    """The description, with names of models and regions that lead somewhere."""
    found: dict[str, Any] = json.loads(json.dumps(openapi.document(page.VERSION)))
    names = {"model": MODELS, "region": REGIONS, "version": ["1", "9"], "any": ["x"]}
    for path in found["paths"].values():
        for operation in path.values():
            for parameter in operation["parameters"]:
                if parameter["name"] in names:
                    parameter["schema"] = {"enum": names[parameter["name"]]}
    return found


schema = schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[worker_process.Worker]:
    folder = tmp_path_factory.mktemp("openapi")
    onnx_models.put(folder / "models", "ident", onnx_models.identity())
    onnx_models.put(folder / "models", "text", onnx_models.identity("BYTES"))
    flags = ("--model-control-mode=explicit", "--load-model=ident", "--load-model=text")
    with worker_process.running(folder / "models", folder / "worker", *flags) as found:
        yield found


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as found:
        found.trust_env = False
        yield found


CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    unsupported_method,
]
ASKED: dict[str, Any] = {"inputs": [{"name": "INPUT", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
WELL: tuple[tuple[str, str, Any], ...] = (
    ("/v2", "GET", None),
    ("/v2/health/live", "GET", None),
    ("/v2/health/ready", "GET", None),
    ("/v2/models/{model}", "GET", None),
    ("/v2/models/{model}/ready", "GET", None),
    ("/v2/models/{model}/infer", "POST", ASKED),
    ("/v2/models/{model}/infer", "POST", {**ASKED, "id": "7"}),
    ("/v2/models/{model}/infer", "POST", {**ASKED, "parameters": {"binary_data_output": True}}),
    (
        "/v2/models/{model}/infer",
        "POST",
        {**ASKED, "outputs": [{"name": "OUTPUT", "parameters": {"classification": 2}}]},
    ),
    ("/v2/models/{model}/generate", "POST", {"INPUT": [1.0, 2.0, 3.0, 4.0]}),
    ("/v2/models/{model}/generate_stream", "POST", {"INPUT": [1.0, 2.0, 3.0, 4.0]}),
    ("/v2/models/{model}/config", "GET", None),
    ("/v2/models/{model}/stats", "GET", None),
    ("/v2/models/stats", "GET", None),
    ("/v2/repository/index", "POST", {"ready": True}),
    ("/v2/repository/models/{model}/load", "POST", {"parameters": {}}),
    ("/v2/trace/setting", "GET", None),
    ("/v2/models/{model}/trace/setting", "GET", None),
    ("/v2/trace/setting", "POST", {"trace_rate": "500"}),
    ("/v2/logging", "GET", None),
    ("/v2/logging", "POST", {"log_verbose_level": 1}),
    ("/v2/systemsharedmemory/status", "GET", None),
    ("/v2/cudasharedmemory/status", "GET", None),
    ("/v2/systemsharedmemory/unregister", "POST", None),
)


@pytest.mark.parametrize(("path", "verb", "body"), WELL)
def test_what_goes_well_is_as_described(
    path: str, verb: str, body: Any, worker: worker_process.Worker, session: Any
) -> None:
    more = {} if body is None else {"body": body, "media_type": "application/json"}
    names = {"model": "ident"} if "{model}" in path else {}
    case = schema[path][verb].Case(path_parameters=names, **more)
    answer = case.call(base_url=f"http://{worker.address('http')}", session=session, timeout=60)
    assert answer.status_code == 200, answer.text
    case.validate_response(answer, checks=CHECKS)


@pytest.mark.slow  # many calls of a live worker
@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described(
    case: schemathesis.Case[Any], worker: worker_process.Worker, session: Any
) -> None:
    answer = case.call(base_url=f"http://{worker.address('http')}", session=session, timeout=60)
    case.validate_response(answer, checks=CHECKS)
    assert HIDDEN not in answer.text
    assert worker.process.poll() is None


def test_the_page_is_what_the_worker_says_of_itself() -> None:
    path = pathlib.Path(__file__).parents[3] / "docs" / "reference" / "openapi.json"
    assert path.read_text(encoding="utf-8") == page.text()
