"""The model repository: index, load and unload, with configurations and files that come with the call; section 4.6."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from typing import Any

from protos.inference.v2 import predict_pb2 as pb
from tests.conformance import case, models, tensors
from tests.conformance.case import Case, Text
from tests.conformance.tensors import ONE, body
from tests.support import onnx_models

_SECTION = "Model repository"
_IDLE = case.get("/v2/models/idle/ready")
_INFER = tensors.ask("idle", body([ONE]))


def cases() -> Iterator[Case]:
    groups = (_index(), _named(), _load(), _failed(), _unload(), _configs(), _files(), _bodies())
    yield from case.named("repository", list(itertools.chain.from_iterable(groups)))
    yield from case.named("control", list(_control()))


def load(model: str, **parameters: Any) -> case.Http:
    return case.post(f"/v2/repository/models/{model}/load", {"parameters": parameters} if parameters else b"")


def unload(model: str, **parameters: Any) -> case.Http:
    return case.post(f"/v2/repository/models/{model}/unload", {"parameters": parameters} if parameters else b"")


def load_rpc(model: str, **parameters: Any) -> case.Rpc:
    made = pb.RepositoryModelLoadRequest(model_name=model)
    for key, value in parameters.items():
        tensors.set_parameter(made.parameters[key.replace("__", ":")], value)
    return case.rpc("RepositoryModelLoad", made)


def unload_rpc(model: str, **parameters: Any) -> case.Rpc:
    made = pb.RepositoryModelUnloadRequest(model_name=model)
    for key, value in parameters.items():
        tensors.set_parameter(made.parameters[key], value)
    return case.rpc("RepositoryModelUnload", made)


def _index() -> Iterator[Case]:
    """All models: whichever ran before this, a model that was touched stays so; states are those after a load of all."""
    touched = (load("idle"), unload("idle"))
    row, ready = "models that are ready", case.post("/v2/repository/index", {"ready": True})
    yield Case(id="http/ready", section=_SECTION, row=row, before=touched, call=ready)
    request = case.rpc("RepositoryIndex", pb.RepositoryIndexRequest(ready=True))
    yield Case(id="grpc/ready", section=_SECTION, row=row, before=touched, call=request)
    loaded, unloaded = (load("idle"),), (unload("idle"),)
    yield Case(id="http/ready-after-load", section=_SECTION, row=row, before=loaded, call=ready, after=unloaded)
    bad = (("not-json", b"{not"), ("array", b"[1]"), ("ready-word", b'{"ready": "yes"}'))
    row = "an index request that is no JSON object or of a wrong type"
    for name, text in bad:
        yield Case(id=f"http/{name}", section=_SECTION, row=row, call=case.post("/v2/repository/index", text))


def _named() -> Iterator[Case]:
    calls: dict[str, case.Call] = {
        "http/named-index": case.post("/v2/repository/mine/index"),
        "http/named-load": case.post("/v2/repository/mine/models/idle/load"),
        "http/named-unload": case.post("/v2/repository/mine/models/idle/unload"),
        "grpc/named-index": case.rpc("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="mine")),
        "grpc/named-load": case.rpc(
            "RepositoryModelLoad", pb.RepositoryModelLoadRequest(repository_name="mine", model_name="idle")
        ),
        "grpc/named-unload": case.rpc(
            "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(repository_name="mine", model_name="idle")
        ),
    }
    for name, call in calls.items():
        yield Case(id=name, section=_SECTION, row="a repository's name", call=call)


def _load() -> Iterator[Case]:
    for transport, call in (("http", load("idle")), ("grpc", load_rpc("idle"))):
        yield Case(
            id=f"{transport}/load", section=_SECTION, row="load", call=call, after=(_IDLE, _INFER, unload("idle"))
        )
        yield Case(
            id=f"{transport}/load-twice",
            section=_SECTION,
            row="load of a loaded model",
            before=(load("idle"),),
            call=call,
            after=(_INFER, unload("idle")),
        )
    failing = (
        ("absent", "load of a model that is in no repository", Text.EXACT),
        ("broken", "load of a model that fails", Text.FREE),
        ("misnamed", "load of a model whose configuration has another name", Text.FREE),
        ("unreadable", "load of a model whose configuration cannot be read", Text.FREE),
        ("..%2Fidle", "load of a name that leaves the repository", Text.EXACT),
    )
    for model, row, text in failing:
        name = "escape" if model.startswith(".") else model
        yield Case(id=f"http/load-{name}", section=_SECTION, row=row, call=load(model), text=text)
        real = "../idle" if model.startswith(".") else model
        yield Case(id=f"grpc/load-{name}", section=_SECTION, row=row, call=load_rpc(real), text=text)
    yield Case(id="grpc/load-no-name", section=_SECTION, row="load without a name", call=load_rpc(""), text=Text.EXACT)


def _failed() -> Iterator[Case]:
    """Strict readiness counts a model that could not be loaded until it is unloaded; others may have failed before."""
    forgotten = tuple(unload(model) for model in ("broken", "misnamed", "unreadable", "absent"))
    ready = case.get("/v2/health/ready")
    row = "server ready after a load that failed"
    yield Case(id="http/failed-ready", section=_SECTION, row=row, before=(load("broken"),), call=ready)
    yield Case(
        id="http/failed-unloaded-ready",
        section=_SECTION,
        row=f"{row}, once the model is unloaded",
        before=(load("broken"), *forgotten),
        call=ready,
    )


def _unload() -> Iterator[Case]:
    for transport, call in (("http", unload("idle")), ("grpc", unload_rpc("idle"))):
        yield Case(
            id=f"{transport}/unload", section=_SECTION, row="unload", before=(load("idle"),), call=call, after=(_INFER,)
        )
        yield Case(
            id=f"{transport}/unload-again",
            section=_SECTION,
            row="unload of a model that is not loaded",
            call=call,
        )
    for transport, make in (("http", unload), ("grpc", unload_rpc)):
        yield Case(
            id=f"{transport}/unload-absent",
            section=_SECTION,
            row="unload of a model that is in no repository",
            call=make("absent"),
        )
        for value in (True, False):
            yield Case(
                id=f"{transport}/unload-dependents-{str(value).lower()}",
                section=_SECTION,
                row="unload_dependents",
                before=(load("idle"),),
                call=make("idle", unload_dependents=value),
            )
        yield Case(
            id=f"{transport}/unload-dependents-string",
            section=_SECTION,
            row="unload_dependents of a wrong type",
            call=make("idle", unload_dependents="yes"),
        )
        yield Case(
            id=f"{transport}/unload-unknown-parameter",
            section=_SECTION,
            row="unload with an unknown parameter",
            call=make("idle", mine=True),
        )


def _configs() -> Iterator[Case]:
    renamed = {
        "max_batch_size": 0,
        "input": [{"name": "INPUT", "data_type": "TYPE_FP32", "dims": [1]}],
        "output": [{"name": "OUTPUT", "data_type": "TYPE_FP32", "dims": [1]}],
    }
    shown = case.get("/v2/models/idle")
    for transport, make in (("http", load), ("grpc", load_rpc)):
        yield Case(
            id=f"{transport}/config",
            section=_SECTION,
            row="load with a configuration",
            call=make("idle", config=json.dumps(renamed)),
            after=(shown, unload("idle")),
            masked=frozenset(("platform",)),
        )
        yield Case(
            id=f"{transport}/config-forgotten",
            section=_SECTION,
            row="a load without a configuration goes back to the repository's",
            before=(load(f"forgotten_{transport}", config=json.dumps(renamed)),),
            call=make(f"forgotten_{transport}"),
            after=(case.get(f"/v2/models/forgotten_{transport}"), unload(f"forgotten_{transport}")),
            masked=frozenset(("platform",)),
        )
        for name, text in (("not-json", "{not"), ("array", "[]"), ("unknown-field", '{"colour": 1}')):
            yield Case(
                id=f"{transport}/config-{name}",
                section=_SECTION,
                row="load with a configuration that is none",
                call=make("idle", config=text),
                text=Text.FREE,
            )
        yield Case(
            id=f"{transport}/config-number",
            section=_SECTION,
            row="load with a configuration of a wrong type",
            call=make("idle", config=7),
        )
        yield Case(
            id=f"{transport}/load-unknown-parameter",
            section=_SECTION,
            row="load with an unknown parameter",
            call=make("idle", mine="1"),
        )
    yield Case(
        id="http/config-keeps-old",
        section=_SECTION,
        row="a load that fails leaves the model as it was",
        before=(load("idle"),),
        call=load("idle", config="{not"),
        after=(_INFER, unload("idle")),
        text=Text.FREE,
    )


def _files() -> Iterator[Case]:
    text = json.dumps(
        {
            "max_batch_size": 0,
            "input": [{"name": "INPUT", "data_type": "TYPE_FP32", "dims": [-1]}],
            "output": [{"name": "OUTPUT", "data_type": "TYPE_FP32", "dims": [-1]}],
        }
    )
    ours = onnx_models.scale(5, ["d0"])
    theirs = models.twin('[made("OUTPUT", array("INPUT") * numpy.float32(5))]').encode()
    coded = [base64.b64encode(content).decode() for content in (ours, theirs)]
    infer = tensors.ask("brought", body([ONE]))
    yield Case(
        id="http/files",
        section=_SECTION,
        row="load with files",
        call=case.Twin(
            load("brought", config=text, **{"file:1/model.onnx": coded[0]}),
            load("brought", config=text, **{"file:1/model.py": coded[1]}),
        ),
        after=(infer, unload("brought")),
    )
    yield Case(
        id="grpc/files",
        section=_SECTION,
        row="load with files",
        call=case.Twin(
            load_rpc("brought", config=text, **{"file:1/model.onnx": ours}),
            load_rpc("brought", config=text, **{"file:1/model.py": theirs}),
        ),
        after=(infer, unload("brought")),
    )
    yield Case(
        id="http/files-no-config",
        section=_SECTION,
        row="load with files and no configuration",
        call=load("brought", **{"file:1/model.x": coded[0]}),
    )
    yield Case(
        id="grpc/files-no-config",
        section=_SECTION,
        row="load with files and no configuration",
        call=load_rpc("brought", **{"file:1/model.x": ours}),
    )
    for name, path in (("up", "../outside"), ("absolute", "/tmp/outside"), ("inside-up", "1/../../outside")):
        yield Case(
            id=f"http/files-{name}",
            section=_SECTION,
            row="load with a file that leaves the model's directory",
            call=load("brought", config=text, **{f"file:{path}": coded[0]}),
            text=Text.FREE,
        )
        yield Case(
            id=f"grpc/files-{name}",
            section=_SECTION,
            row="load with a file that leaves the model's directory",
            call=load_rpc("brought", config=text, **{f"file:{path}": ours}),
            text=Text.FREE,
        )
    yield Case(
        id="http/files-not-base64",
        section=_SECTION,
        row="load with a file that is no base64",
        call=load("brought", config=text, **{"file:1/model.x": "%%%"}),
        text=Text.FREE,
    )
    yield Case(
        id="grpc/files-string",
        section=_SECTION,
        row="load with a file of a wrong type",
        call=load_rpc("brought", config=text, **{"file:1/model.x": "text"}),
        text=Text.FREE,
    )


def _bodies() -> Iterator[Case]:
    for name, text in (("not-json", b"{not"), ("array", b"[1]"), ("parameters-array", b'{"parameters": []}')):
        for action in ("load", "unload"):
            yield Case(
                id=f"http/{action}-body-{name}",
                section=_SECTION,
                row=f"{action} with a body that is no JSON object",
                call=case.post(f"/v2/repository/models/idle/{action}", text),
                after=(unload("idle"),),
            )
    for action in ("load", "unload"):
        yield Case(
            id=f"http/{action}-empty-object",
            section=_SECTION,
            row=f"{action} with an empty object",
            call=case.post(f"/v2/repository/models/idle/{action}", b"{}"),
            after=(unload("idle"),),
        )


def _control() -> Iterator[Case]:
    for setup in ("none", "poll"):
        for action, http, rpc in (("load", load, load_rpc), ("unload", unload, unload_rpc)):
            row = f"{action} under model-control-mode={setup}"
            yield Case(id=f"http/{setup}-{action}", section=_SECTION, row=row, call=http("id_fp32"), setup=setup)
            yield Case(id=f"grpc/{setup}-{action}", section=_SECTION, row=row, call=rpc("id_fp32"), setup=setup)
        row = f"index under model-control-mode={setup}"
        index = case.post("/v2/repository/index")
        yield Case(id=f"http/{setup}-index", section=_SECTION, row=row, call=index, setup=setup)
        yield Case(
            id=f"grpc/{setup}-index", section=_SECTION, row=row, call=case.rpc("RepositoryIndex", b""), setup=setup
        )
        yield Case(
            id=f"http/{setup}-infer",
            section=_SECTION,
            row=f"inference under model-control-mode={setup}",
            call=tensors.ask("id_fp32", body([ONE])),
            setup=setup,
        )
