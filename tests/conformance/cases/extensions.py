"""Classification, statistics, trace, logging: sections 4.1 and 4.7 to 4.9 of the contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from protos.inference.v2 import predict_pb2 as pb
from tests.conformance import case, tensors
from tests.conformance.case import Case
from tests.conformance.tensors import Raw, body, output, tensor

_CLASSES = "Classification"
_STATISTICS = "Statistics"
_TRACE = "Trace settings"
_LOG = "Log settings"
# Each server takes its own time, and memory.
_TIMES = frozenset(("ns", "last_inference", "memory_usage"))


def cases() -> Iterator[Case]:
    yield from case.named("classification", list(_classification()))
    yield from case.named("statistics", list(_statistics()))
    yield from case.named("trace", list(_trace()))
    yield from case.named("logging", list(_logging()))


def _classification() -> Iterator[Case]:
    eight = [0.5, 8.0, 3.25, -1.0, 7.0, 2.0, 0.125, 1e6]
    samples: tuple[tuple[str, str, str, str, list[int], list[Any], int], ...] = (
        ("best", "the best classes with labels", "classes", "FP32", [1, 8], eight, 3),
        ("one", "the best class", "classes", "FP32", [1, 8], eight, 1),
        ("beyond", "more classes than there are", "classes", "FP32", [1, 8], eight, 99),
        ("batch", "a batch", "classes", "FP32", [2, 8], [*eight, *reversed(eight)], 2),
        ("ties", "equal values", "classes", "FP32", [1, 8], [1.0] * 8, 3),
        ("integers", "integers, not all labelled", "classes_int", "INT32", [8], [5, -2, 9, 0, 7, 1, 3, 8], 4),
        ("plain", "no labels", "classes_plain", "FP64", [8], eight, 3),
        ("zero", "no class", "classes", "FP32", [1, 8], eight, 0),
        ("negative", "fewer than no class", "classes", "FP32", [1, 8], eight, -1),
        ("strings", "BYTES", "id_bytes", "BYTES", [1], [b"a"], 1),
        ("booleans", "BOOL", "id_bool", "BOOL", [1], [True], 1),
        ("halves", "FP16", "id_fp16", "FP16", [2], [1.0, 2.0], 1),
        ("small-integers", "INT8", "id_int8", "INT8", [3], [3, 1, 2], 2),
        ("unsigned", "UINT64", "id_uint64", "UINT64", [3], [3, 2**64 - 1, 2], 2),
    )
    for name, row, model, datatype, shape, values, count in samples:
        data = tensors.wire(datatype, values)
        given = tensor("INPUT", datatype, shape, binary_data_size=len(data))
        setup = "fatal" if datatype == "BYTES" else "plain"
        for form, binary in (("", False), ("-binary", True)):
            wanted = output("OUTPUT", classification=count, binary_data=binary)
            yield Case(
                id=f"http/{name}{form}",
                section=_CLASSES,
                row=row,
                call=tensors.ask(model, body([given], [wanted]), data),
                setup=setup,
            )
        made = tensors.request(model, [Raw("INPUT", datatype, shape, data)], ["OUTPUT"])
        made.outputs[0].parameters["classification"].int64_param = count
        yield Case(id=f"grpc/{name}", section=_CLASSES, row=row, call=case.rpc("ModelInfer", made), setup=setup)
    for name, value in (("string", "3"), ("boolean", True)):
        row = "classification of a wrong type"
        data = tensors.wire("FP32", eight)
        given = tensor("INPUT", "FP32", [1, 8], eight)
        yield Case(
            id=f"http/{name}",
            section=_CLASSES,
            row=row,
            call=tensors.ask("classes", body([given], [output("OUTPUT", classification=value)])),
        )
        made = tensors.request("classes", [Raw("INPUT", "FP32", [1, 8], data)], ["OUTPUT"])
        tensors.set_parameter(made.outputs[0].parameters["classification"], value)
        yield Case(id=f"grpc/{name}", section=_CLASSES, row=row, call=case.rpc("ModelInfer", made))


def _statistics() -> Iterator[Case]:
    load, unload = case.post("/v2/repository/models/counted/load"), case.post("/v2/repository/models/counted/unload")
    four = [1.0, 2.0, 3.0, 4.0]
    infer = tensors.ask("counted", body([tensor("INPUT", "FP32", [2, 4], four * 2)]))
    fail = tensors.ask("counted", body([tensor("INPUT", "FP32", [1, 3], four[:3])]))
    http, grpc = (
        case.get("/v2/models/counted/stats"),
        case.rpc("ModelStatistics", pb.ModelStatisticsRequest(name="counted")),
    )
    histories: tuple[tuple[str, str, tuple[case.Call, ...], tuple[bytes, bytes]], ...] = (
        ("fresh", "of a model that nobody has asked", (load,), (b"", b"")),
        # As text, and as field 5 of the message.
        ("used", "after two batches of two", (load, infer, infer), (b'"execution_count":2', b"\x28\x02")),
    )
    for name, row, before, settled in histories:
        for transport, call, settles in (("http", http, settled[0]), ("grpc", grpc, settled[1])):
            yield Case(
                id=f"{transport}/{name}",
                section=_STATISTICS,
                row=f"statistics {row}",
                before=before,
                call=call,
                after=(unload,),
                masked=_TIMES,
                settles=settles,
            )
    for transport, call in (("http", http), ("grpc", grpc)):
        yield Case(
            id=f"{transport}/refused",
            section=_STATISTICS,
            row="statistics after a request that was refused",
            before=(load, fail),
            call=call,
            after=(unload,),
            masked=_TIMES,
        )
        yield Case(
            id=f"{transport}/reloaded",
            section=_STATISTICS,
            row="statistics begin anew with a load",
            before=(load, infer, unload, load),
            call=call,
            after=(unload,),
            masked=_TIMES,
        )
    unknown = (("unknown", "absent", ""), ("unknown-version", "versioned", "9"), ("untouched", "untouched", ""))
    for name, model, version in unknown:
        path = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/stats"
        request = pb.ModelStatisticsRequest(name=model, version=version)
        row = "statistics of an unknown model or version"
        yield Case(id=f"http/{name}", section=_STATISTICS, row=row, call=case.get(path))
        yield Case(id=f"grpc/{name}", section=_STATISTICS, row=row, call=case.rpc("ModelStatistics", request))
    every = frozenset(
        (*_TIMES, "inference_count", "execution_count", "inference_stats", "batch_stats", "response_stats")
    )
    yield Case(
        id="http/all",
        section=_STATISTICS,
        row="statistics of all models",
        call=case.get("/v2/models/stats"),
        masked=every,
    )
    yield Case(
        id="grpc/all",
        section=_STATISTICS,
        row="statistics of all models",
        call=case.rpc("ModelStatistics", b""),
        masked=every,
    )


def _trace() -> Iterator[Case]:
    reset: Mapping[str, Any] = dict.fromkeys(("trace_level", "trace_rate", "trace_count", "log_frequency"))
    restore = case.post("/v2/trace/setting", reset)
    restore_model = case.post("/v2/models/id_fp32/trace/setting", reset)
    read = "/v2/trace/setting"
    masked = frozenset(("trace_file",))
    yield Case(id="http/read", section=_TRACE, row="global settings", call=case.get(read), masked=masked)
    yield Case(id="grpc/read", section=_TRACE, row="global settings", call=case.rpc("TraceSetting", b""), masked=masked)
    yield Case(
        id="http/read-model",
        section=_TRACE,
        row="settings of a model",
        call=case.get("/v2/models/id_fp32/trace/setting"),
        masked=masked,
    )
    yield Case(
        id="grpc/read-model",
        section=_TRACE,
        row="settings of a model",
        call=case.rpc("TraceSetting", pb.TraceSettingRequest(model_name="id_fp32")),
        masked=masked,
    )
    yield Case(
        id="http/read-unknown",
        section=_TRACE,
        row="settings of an unknown model",
        call=case.get("/v2/models/absent/trace/setting"),
    )
    yield Case(
        id="grpc/read-unknown",
        section=_TRACE,
        row="settings of an unknown model",
        call=case.rpc("TraceSetting", pb.TraceSettingRequest(model_name="absent")),
    )
    changes: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("rate", "change trace_rate", {"trace_rate": "17"}),
        ("count", "change trace_count", {"trace_count": "5"}),
        ("log-frequency", "change log_frequency", {"log_frequency": "3"}),
        ("off", "switch off", {"trace_level": ["OFF"]}),
        ("level-timestamps", "change trace_level", {"trace_level": ["TIMESTAMPS"]}),
        ("level-both", "change trace_level", {"trace_level": ["TIMESTAMPS", "TENSORS"]}),
        ("several", "change several settings", {"trace_rate": "9", "trace_count": "8", "log_frequency": "7"}),
        ("nothing", "change nothing", {}),
        ("clear", "clear a setting", {"trace_rate": None}),
        ("off-and-more", "OFF beside another level", {"trace_level": ["OFF", "TIMESTAMPS"]}),
        ("level-unknown", "unknown trace_level", {"trace_level": ["LOUD"]}),
        ("level-string", "trace_level that is no list", {"trace_level": "TIMESTAMPS"}),
        ("rate-word", "trace_rate that is no number", {"trace_rate": "x"}),
        ("rate-number", "trace_rate as a JSON number", {"trace_rate": 17}),
        ("rate-negative", "trace_rate below 0", {"trace_rate": "-1"}),
        ("count-word", "trace_count that is no number", {"trace_count": "x"}),
        ("count-unlimited", "trace_count without a bound", {"trace_count": "-1"}),
        ("count-below", "trace_count below -1", {"trace_count": "-2"}),
        ("frequency-word", "log_frequency that is no number", {"log_frequency": "x"}),
        ("rate-huge", "trace_rate beyond 32 bits", {"trace_rate": "99999999999"}),
        ("file", "trace_file", {"trace_file": "/tmp/elsewhere"}),
        ("mode", "trace_mode", {"trace_mode": "opentelemetry"}),
        ("unknown", "unknown setting", {"trace_colour": "red"}),
    )
    for name, row, given in changes:
        for where, path in (("", read), ("-model", "/v2/models/id_fp32/trace/setting")):
            yield Case(
                id=f"http/{name}{where}",
                section=_TRACE,
                row=f"{row}, of {'a model' if where else 'all'}",
                call=case.post(path, given),
                after=(case.get(path), restore_model, restore),
                masked=masked,
            )
            if name == "rate-number":
                continue
            yield Case(
                id=f"grpc/{name}{where}",
                section=_TRACE,
                row=f"{row}, of {'a model' if where else 'all'}",
                call=case.rpc("TraceSetting", _trace_request(given, "id_fp32" if where else "")),
                after=(case.get(path), restore_model, restore),
                masked=masked,
            )
    yield Case(
        id="http/inherit",
        section=_TRACE,
        row="a model inherits what is not its own",
        before=(
            case.post("/v2/models/id_fp32/trace/setting", {"trace_count": "4"}),
            case.post(read, {"trace_rate": "21"}),
        ),
        call=case.get("/v2/models/id_fp32/trace/setting"),
        after=(restore_model, restore),
        masked=masked,
    )
    for name, text in (("not-json", b"{not"), ("array", b"[1]"), ("empty", b"")):
        yield Case(
            id=f"http/{name}",
            section=_TRACE,
            row="a body that is no JSON object",
            call=case.post(read, text),
            masked=masked,
        )


def _trace_request(given: Mapping[str, Any], model: str) -> pb.TraceSettingRequest:
    made = pb.TraceSettingRequest(model_name=model)
    for key, value in given.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        made.settings[key].value.extend(values)
    return made


def _logging() -> Iterator[Case]:
    defaults = {
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
    restore = case.post("/v2/logging", defaults)
    masked = frozenset(("log_file",))
    yield Case(id="http/read", section=_LOG, row="settings", call=case.get("/v2/logging"))
    yield Case(id="grpc/read", section=_LOG, row="settings", call=case.rpc("LogSettings", b""))
    changes: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("info", "change log_info", {"log_info": False}),
        ("warning", "change log_warning", {"log_warning": False}),
        ("error", "change log_error", {"log_error": False}),
        ("verbose", "change log_verbose_level", {"log_verbose_level": 2}),
        ("format", "change log_format", {"log_format": "ISO8601"}),
        ("several", "change several settings", {"log_info": False, "log_verbose_level": 1}),
        ("nothing", "change nothing", {}),
        ("info-word", "log_info of a wrong type", {"log_info": "no"}),
        ("info-number", "log_info of a wrong type", {"log_info": 0}),
        ("verbose-word", "log_verbose_level of a wrong type", {"log_verbose_level": "two"}),
        ("verbose-negative", "log_verbose_level below 0", {"log_verbose_level": -1}),
        ("format-unknown", "unknown log_format", {"log_format": "loud"}),
        ("format-number", "log_format of a wrong type", {"log_format": 7}),
        ("file", "log_file", {"log_file": "/tmp/elsewhere"}),
        ("unknown", "unknown setting", {"log_colour": True}),
        ("warnings", "log_warnings, as some clients spell it", {"log_warnings": True}),
    )
    for name, row, given in changes:
        yield Case(
            id=f"http/{name}",
            section=_LOG,
            row=row,
            call=case.post("/v2/logging", given),
            after=(case.get("/v2/logging"), restore),
            masked=masked,
        )
        if name == "verbose-negative":
            continue
        yield Case(
            id=f"grpc/{name}",
            section=_LOG,
            row=row,
            call=case.rpc("LogSettings", _log_request(given)),
            after=(case.get("/v2/logging"), restore),
            masked=masked,
        )
    for name, text in (("not-json", b"{not"), ("array", b"[1]"), ("empty", b"")):
        yield Case(
            id=f"http/{name}", section=_LOG, row="a body that is no JSON object", call=case.post("/v2/logging", text)
        )


def _log_request(given: Mapping[str, Any]) -> pb.LogSettingsRequest:
    made = pb.LogSettingsRequest()
    for key, value in given.items():
        setting = made.settings[key]
        if isinstance(value, bool):
            setting.bool_param = value
        elif isinstance(value, int):
            setting.uint32_param = value
        else:
            setting.string_param = value
    return made
