"""Shared memory: sections 4.4 and 4.5 of the contract."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from protos.inference.v2 import predict_pb2 as pb
from tests.conformance import case, tensors
from tests.conformance.case import Case
from tests.conformance.tensors import Raw, body, output, tensor

_SYSTEM = "System shared memory"
_CUDA = "CUDA shared memory"
_KEY = "/tms_conformance_region"
_PATH = "/v2/systemsharedmemory"
_CONTENT = tensors.wire("FP32", [1.0, 2.0, 3.0, 4.0]) + bytes(48)
_OTHER = "/tms_conformance_other"
_OBJECT = {_KEY: _CONTENT, _OTHER: _CONTENT}
_CLEAR = case.post(f"{_PATH}/unregister")


def cases() -> Iterator[Case]:
    yield from case.named("shared", [*_regions(), *_tensors(), *_refused_tensors()])
    yield from case.named("cuda", list(_cuda()))


def register(name: str = "region", key: object = _KEY, offset: object = 0, size: object = 64) -> case.Http:
    told = {"key": key, "offset": offset, "byte_size": size}
    return case.post(
        f"{_PATH}/region/{name}/register", {name: value for name, value in told.items() if value is not None}
    )


def register_rpc(name: str = "region", key: str = _KEY, offset: int = 0, size: int = 64) -> case.Rpc:
    made = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size)
    return case.rpc("SystemSharedMemoryRegister", made)


def _status_rpc(name: str = "") -> case.Rpc:
    return case.rpc("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name=name))


def _case(name: str, row: str, call: case.Call, *before: case.Call, after: tuple[case.Call, ...] = ()) -> Case:
    return Case(
        id=name, section=_SYSTEM, row=row, before=before, call=call, after=after, cleanup=(_CLEAR,), shared=_OBJECT
    )


def _regions() -> Iterator[Case]:
    status = case.get(f"{_PATH}/status")
    yield _case("http/status-empty", "status without regions", status)
    yield _case("grpc/status-empty", "status without regions", _status_rpc())
    yield _case("http/register", "register", register(), after=(status,))
    yield _case("grpc/register", "register", register_rpc(), after=(_status_rpc(),))
    yield _case("http/status", "status of all regions", status, register(), register("other", _OTHER, size=16))
    yield _case("grpc/status", "status of all regions", _status_rpc(), register(), register("other", _OTHER, size=16))
    yield _case("http/status-one", "status of a region", case.get(f"{_PATH}/region/region/status"), register())
    yield _case("grpc/status-one", "status of a region", _status_rpc("region"), register())
    yield _case("http/status-unknown", "status of an unknown region", case.get(f"{_PATH}/region/absent/status"))
    yield _case("grpc/status-unknown", "status of an unknown region", _status_rpc("absent"))
    yield _case("http/twice", "register a name twice", register(), register())
    yield _case("grpc/twice", "register a name twice", register_rpc(), register_rpc())
    yield _case("http/twice-otherwise", "register a name twice, otherwise", register(size=16), register())
    wrong: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("no-object", "a key that no object has", {"key": "/tms_conformance_absent"}),
        ("no-slash", "a key without its slash", {"key": _KEY[1:]}),
        ("path", "a key that is a path", {"key": "/../etc/passwd"}),
        ("empty-key", "an empty key", {"key": ""}),
        ("size-beyond", "a size beyond the object", {"size": 65}),
        ("offset-beyond", "an offset beyond the object", {"offset": 65, "size": 1}),
        ("sum-beyond", "offset and size beyond the object", {"offset": 32, "size": 64}),
        ("size-zero", "a size of zero", {"size": 0}),
        ("wrapping", "offset and size that wrap around", {"offset": 2**64 - 32, "size": 64}),
        ("huge", "a size of 63 bits", {"size": 2**63 - 1}),
    )
    for name, row, given in wrong:
        yield _case(f"http/{name}", row, register(**given))
        yield _case(f"grpc/{name}", row, register_rpc(**given))
    typed: tuple[tuple[str, dict[str, Any]], ...] = (
        ("no-key", {"key": None}),
        ("no-size", {"size": None}),
        ("key-number", {"key": 7}),
        ("size-string", {"size": "64"}),
        ("size-negative", {"size": -1}),
        ("offset-string", {"offset": "0"}),
    )
    for name, given in typed:
        yield _case(f"http/{name}", "a member that is missing or of a wrong type", register(**given))
    yield _case("http/no-offset", "no offset", register(offset=None), after=(status,))
    for name, text in (("not-json", b"{not"), ("array", b"[1]"), ("empty", b"")):
        call = case.post(f"{_PATH}/region/region/register", text)
        yield _case(f"http/body-{name}", "a body that is no JSON object", call)
    unregister = case.post(f"{_PATH}/region/region/unregister")
    yield _case("http/unregister", "unregister a region", unregister, register(), after=(status,))
    yield _case("http/unregister-all", "unregister all regions", _CLEAR, register(), after=(status,))
    yield _case("http/unregister-unknown", "unregister an unknown region", unregister)
    for name, region in (("unregister", "region"), ("unregister-all", ""), ("unregister-unknown", "absent")):
        rows = {"unregister": "unregister a region", "unregister-all": "unregister all regions"}
        unregistered = case.rpc("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=region))
        yield _case(
            f"grpc/{name}", rows.get(name, "unregister an unknown region"), unregistered, register(), after=(status,)
        )
    yield _case("http/offset-unaligned", "register at an offset that is no page's", register(offset=16, size=16))
    reserved = "/triton_python_backend_shm_region_x"
    yield Case(
        id="http/reserved",
        section=_SYSTEM,
        row="a key that is Triton's own",
        call=register(key=reserved),
        cleanup=(_CLEAR,),
        shared={reserved: _CONTENT},
    )


def _place(region: str = "region", size: object = 16, offset: object = None) -> dict[str, Any]:
    told = {"shared_memory_region": region, "shared_memory_byte_size": size, "shared_memory_offset": offset}
    return {name: value for name, value in told.items() if value is not None}


def _infer(given: dict[str, Any], *outputs: dict[str, Any], model: str = "id_fp32") -> case.Http:
    shape = given.pop("shape", [4])
    return tensors.ask(model, body([tensor("INPUT", "FP32", shape, **given)], outputs))


def _infer_rpc(given: dict[str, Any], wanted: dict[str, Any] | None = None) -> case.Rpc:
    made = pb.ModelInferRequest(model_name="id_fp32")
    added = made.inputs.add(name="INPUT", datatype="FP32", shape=given.pop("shape", [4]))
    for key, value in given.items():
        tensors.set_parameter(added.parameters[key], value)
    asked = made.outputs.add(name="OUTPUT")
    for key, value in (wanted or {}).items():
        tensors.set_parameter(asked.parameters[key], value)
    return case.rpc("ModelInfer", made)


def _tensors() -> Iterator[Case]:
    plain = tensor("INPUT", "FP32", [4], [9.0, 8.0, 7.0, 6.0])
    raw = Raw("INPUT", "FP32", [4], tensors.wire("FP32", [9.0, 8.0, 7.0, 6.0]))
    far = _place(offset=32)
    samples: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
        ("input", "an input in shared memory", _place(), {}),
        ("input-offset", "an input at an offset", {**_place(size=8, offset=8), "shape": [2]}, {}),
        ("both", "input and output in shared memory", _place(), far),
        ("output-larger", "an output region larger than the output", _place(), _place(size=32, offset=32)),
    )
    for name, row, given, wanted in samples:
        yield _case(f"http/{name}", row, _infer(dict(given), output("OUTPUT", **wanted)), register())
        yield _case(f"grpc/{name}", row, _infer_rpc(dict(given), wanted), register_rpc())
    yield _case(
        "http/output",
        "an output in shared memory",
        tensors.ask("id_fp32", body([plain], [output("OUTPUT", **far)])),
        register(),
    )
    made = tensors.request("id_fp32", [raw], ["OUTPUT"])
    for key, value in far.items():
        tensors.set_parameter(made.outputs[0].parameters[key], value)
    yield _case("grpc/output", "an output in shared memory", case.rpc("ModelInfer", made), register())
    yield _case(
        "http/one-of-two",
        "one input in shared memory, another in the body",
        tensors.ask(
            "add_sub",
            body(
                [tensor("INPUT0", "FP32", [1, 4], **_place()), tensor("INPUT1", "FP32", [1, 4], [1.0, 1.0, 1.0, 1.0])]
            ),
        ),
        register(),
    )


def _refused_tensors() -> Iterator[Case]:
    bad: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
        ("unknown-region", "an input in an unknown region", _place("absent"), {}),
        ("input-short", "an input region smaller than the input", _place(size=8), {}),
        ("input-long", "an input region larger than the input", _place(size=32), {}),
        ("input-beyond", "an input beyond its region", _place(size=16, offset=56), {}),
        ("input-offset-beyond", "an input that begins beyond its region", _place(size=16, offset=100), {}),
        ("input-no-size", "an input without a size", _place(size=None), {}),
        ("output-short", "an output region smaller than the output", _place(), _place(size=8, offset=32)),
        ("output-unknown", "an output in an unknown region", _place(), _place("absent")),
        ("output-beyond", "an output beyond its region", _place(), _place(size=16, offset=56)),
        ("output-classified", "classification in shared memory", _place(), {**_place(offset=32), "classification": 1}),
    )
    for name, row, given, wanted in bad:
        yield _case(f"http/{name}", row, _infer(dict(given), output("OUTPUT", **wanted)), register())
        yield _case(f"grpc/{name}", row, _infer_rpc(dict(given), wanted), register_rpc())
    typed: tuple[tuple[str, dict[str, Any]], ...] = (
        ("region-number", {"shared_memory_region": 7, "shared_memory_byte_size": 16}),
        ("size-text", _place(size="16")),
        ("offset-text", _place(offset="0")),
        ("size-below", _place(size=-16)),
        ("offset-below", _place(offset=-16)),
    )
    for name, given in typed:
        row = "a parameter of a wrong type or sign"
        yield _case(f"http/parameter-{name}", row, _infer(dict(given)), register())
        yield _case(f"grpc/parameter-{name}", row, _infer_rpc(dict(given)), register_rpc())
    yield _case(
        "http/data-too",
        "data beside shared memory",
        tensors.ask("id_fp32", body([tensor("INPUT", "FP32", [4], [1.0] * 4, **_place())])),
        register(),
    )
    yield _case(
        "http/binary-output",
        "binary_data beside shared memory",
        _infer(_place(), output("OUTPUT", binary_data=True, **_place(offset=32))),
        register(),
    )


def _cuda() -> Iterator[Case]:
    path = "/v2/cudasharedmemory"
    handle = base64.b64encode(bytes(64)).decode()
    told = {"raw_handle": {"b64": handle}, "device_id": 0, "byte_size": 64}
    made = pb.CudaSharedMemoryRegisterRequest(name="region", raw_handle=bytes(64), device_id=0, byte_size=64)
    samples: tuple[tuple[str, str, case.Call], ...] = (
        ("http/status", "status without regions", case.get(f"{path}/status")),
        ("grpc/status", "status without regions", case.rpc("CudaSharedMemoryStatus", b"")),
        ("http/status-unknown", "status of an unknown region", case.get(f"{path}/region/absent/status")),
        (
            "grpc/status-unknown",
            "status of an unknown region",
            case.rpc("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name="absent")),
        ),
        ("http/register", "register where there is no GPU", case.post(f"{path}/region/region/register", told)),
        ("grpc/register", "register where there is no GPU", case.rpc("CudaSharedMemoryRegister", made)),
        ("http/unregister", "unregister an unknown region", case.post(f"{path}/region/region/unregister")),
        (
            "grpc/unregister",
            "unregister an unknown region",
            case.rpc("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest(name="region")),
        ),
        ("http/unregister-all", "unregister all regions", case.post(f"{path}/unregister")),
        ("grpc/unregister-all", "unregister all regions", case.rpc("CudaSharedMemoryUnregister", b"")),
        ("http/no-handle", "register without a handle", case.post(f"{path}/region/region/register", {"device_id": 0})),
    )
    for name, row, call in samples:
        yield Case(id=name, section=_CUDA, row=row, call=call)
    yield Case(
        id="http/status-of-system",
        section=_CUDA,
        row="status of a region of the other kind",
        before=(register(),),
        call=case.get(f"{path}/region/region/status"),
        cleanup=(_CLEAR,),
        shared=_OBJECT,
    )
    yield Case(
        id="http/unregister-of-system",
        section=_CUDA,
        row="unregister a region of the other kind",
        before=(register(),),
        call=case.post(f"{path}/region/region/unregister"),
        after=(case.get(f"{_PATH}/status"),),
        cleanup=(_CLEAR,),
        shared=_OBJECT,
    )
