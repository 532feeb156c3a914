"""inference.GRPCInferenceService over the engine.

Decides nothing but form. Must never leave a request with the engine that its client has given up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from google.protobuf import message as protobuf

from gpu_worker.engine import border
from gpu_worker.grpc import calls, codec, guard, plans, sharing, stream, views
from gpu_worker.wire import control as wire_control
from gpu_worker.wire import datatypes, parameters
from gpu_worker.wire import intake as wire_intake
from gpu_worker.wire import rules as wire_rules
from gpu_worker.wire import sharing as wire_sharing
from protos.inference.v2 import predict_pb2

NAME = predict_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
INFER = f"/{NAME}/ModelInfer"
STREAM = f"/{NAME}/ModelStreamInfer"

Answer = border.InferResponse | border.InferenceError


class Service:
    """The methods of the service; `infer` stands apart, since it is called without a task of its own."""

    def __init__(self, engine: border.Engine, intake: wire_intake.Intake, rules: wire_rules.Rules) -> None:
        self._engine = engine
        self._rules = rules
        self.plans = plans.Plans()
        self.ruled = rules.restriction.is_on or rules.forwarding.is_on or rules.trace_context
        """Whether `check` and `complete` have anything to do."""
        self._intake = intake

    def table(self) -> dict[str, calls.Method]:
        """Every method but ModelInfer, by path."""
        unary: dict[str, calls.Handler] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_model_load,
            "RepositoryModelUnload": self._repository_model_unload,
            **sharing.Regions(self._engine, self._rules.sharing).handlers(),
            "TraceSetting": self._trace_setting,
            "LogSettings": self._log_settings,
        }
        methods: dict[str, calls.Method] = {
            f"/{NAME}/{name}": calls.Unary(getattr(predict_pb2, f"{name}Request"), handle)
            for name, handle in unary.items()
        }
        methods[STREAM] = calls.Streaming(predict_pb2.ModelInferRequest, self._stream)
        return guard.guarded(methods, self._rules.restriction)

    def table_of_bytes(self) -> dict[str, calls.Method]:
        """Methods of the table that do without protobuf's messages, for a front whose calls are PartsCalls."""
        return guard.guarded({STREAM: calls.Streaming(None, self._stream_bytes)}, self._rules.restriction)

    def infer(
        self,
        message: predict_pb2.ModelInferRequest,
        raw: Sequence[border.Buffer],
        call: calls.Call,
        done: Callable[[Answer], None],
    ) -> Inference:
        """Submits one inference; `raw` holds its raw_input_contents, wherever they were parsed.

        `done` is called once, on the event loop and never before this returns. The caller must `close` what it gets
        when it has the answer or gives up. Raises InferenceError where nothing was submitted.
        """
        guard.check(self._rules.restriction, "inference", call)
        inference = Inference(self._intake, self._rules.sharing, done)
        request = codec.decode(message, raw, inference)
        self.complete(request, call)
        inference.submit(request, call.deadline_s, message.ByteSize())
        return inference

    def check(self, call: calls.Call) -> None:
        """Raises InferenceError where the call may not infer."""
        guard.check(self._rules.restriction, "inference", call)

    def complete(self, request: border.InferRequest, call: calls.Call) -> None:
        """Adds what the call's metadata says to a request, however it was read."""
        if self._rules.forwarding.is_on:
            request.parameters = self._rules.forwarding.add(request.parameters, calls.texts(call))
        if self._rules.trace_context:
            calls.within_span(request, call)

    def claim(self, request: border.InferRequest) -> int:
        """How many bytes the engine will copy from shared memory for it. Raises InferenceError."""
        return self._rules.sharing.claim(request.inputs, request.outputs)

    async def _stream(self, requests: AsyncIterator[predict_pb2.ModelInferRequest], call: calls.Call) -> None:
        await stream.Stream(self._intake, self._rules, requests, call).run()

    async def _stream_bytes(self, requests: AsyncIterator[border.Buffer], call: calls.PartsCall) -> None:
        await stream.Stream(self._intake, self._rules, requests, call, stream.Parts(self.plans)).run()

    async def _server_live(self, _request: predict_pb2.ServerLiveRequest, _call: calls.Call) -> protobuf.Message:
        return predict_pb2.ServerLiveResponse(live=await self._engine.live())

    async def _server_ready(self, _request: predict_pb2.ServerReadyRequest, _call: calls.Call) -> protobuf.Message:
        return predict_pb2.ServerReadyResponse(ready=await self._engine.ready())

    async def _model_ready(self, request: predict_pb2.ModelReadyRequest, _call: calls.Call) -> protobuf.Message:
        version = parameters.check_version(request.version)
        return predict_pb2.ModelReadyResponse(ready=await self._engine.model_ready(request.name, version))

    async def _server_metadata(
        self, _request: predict_pb2.ServerMetadataRequest, _call: calls.Call
    ) -> protobuf.Message:
        metadata = await self._engine.server_metadata()
        return predict_pb2.ServerMetadataResponse(
            name=metadata.name, version=metadata.version, extensions=metadata.extensions
        )

    async def _model_metadata(self, request: predict_pb2.ModelMetadataRequest, _call: calls.Call) -> protobuf.Message:
        version = parameters.check_version(request.version)
        return views.model(await self._engine.model_metadata(request.name, version))

    async def _model_config(self, request: predict_pb2.ModelConfigRequest, _call: calls.Call) -> protobuf.Message:
        version = parameters.check_version(request.version)
        return predict_pb2.ModelConfigResponse(config=await self._engine.model_config(request.name, version))

    async def _model_statistics(
        self, request: predict_pb2.ModelStatisticsRequest, _call: calls.Call
    ) -> protobuf.Message:
        version = parameters.check_version(request.version)
        found = await self._engine.statistics(request.name, version)
        return predict_pb2.ModelStatisticsResponse(model_stats=map(views.statistics, found))

    async def _repository_index(
        self, request: predict_pb2.RepositoryIndexRequest, call: calls.Call
    ) -> protobuf.Message:
        self._check(call, request.repository_name)
        return views.index(await self._engine.index(ready=request.ready))

    async def _repository_model_load(
        self, request: predict_pb2.RepositoryModelLoadRequest, call: calls.Call
    ) -> protobuf.Message:
        self._check(call, request.repository_name)
        given = {name: _repository_parameter(name, value) for name, value in request.parameters.items()}
        await self._engine.load(request.model_name, given)
        return predict_pb2.RepositoryModelLoadResponse()

    async def _repository_model_unload(
        self, request: predict_pb2.RepositoryModelUnloadRequest, call: calls.Call
    ) -> protobuf.Message:
        self._check(call, request.repository_name)
        given = {name: _repository_parameter(name, value) for name, value in request.parameters.items()}
        dependents = parameters.unload_dependents(given)
        await self._engine.unload(request.model_name, unload_dependents=dependents)
        return predict_pb2.RepositoryModelUnloadResponse()

    async def _trace_setting(self, request: predict_pb2.TraceSettingRequest, call: calls.Call) -> protobuf.Message:
        if request.settings:
            self._rules.control.check(calls.value(call, wire_control.HEADER))
        changes = {name: list(each.value) or None for name, each in request.settings.items()}
        response = predict_pb2.TraceSettingResponse()
        for name, values in (await self._engine.trace_settings(request.model_name, changes)).items():
            response.settings[name].value.extend(values)
        return response

    async def _log_settings(self, request: predict_pb2.LogSettingsRequest, call: calls.Call) -> protobuf.Message:
        if request.settings:
            self._rules.control.check(calls.value(call, wire_control.HEADER))
        changes = {name: _log_setting(name, value) for name, value in request.settings.items()}
        response = predict_pb2.LogSettingsResponse()
        for name, value in (await self._engine.log_settings(changes)).items():
            views.set_log_setting(response.settings[name], value)
        return response

    def _check(self, call: calls.Call, repository: str) -> None:
        self._rules.control.check(calls.value(call, wire_control.HEADER))
        if repository:
            raise border.InferenceError(
                border.ErrorKind.UNSUPPORTED,
                f"repository_name '{repository}' is given, but naming a repository is not supported",
            )


class Inference:
    """One ModelInfer call while the engine has it; takes its one answer."""

    __slots__ = ("_done", "_held_bytes", "_intake", "_request", "_rested", "_sharing", "model")

    def __init__(
        self, intake: wire_intake.Intake, sharing: wire_sharing.Sharing, done: Callable[[Answer], None]
    ) -> None:
        self._intake = intake
        self._sharing = sharing
        self._done: Callable[[Answer], None] | None = done
        self._rested: Callable[[], None] | None = None
        self._held_bytes = 0
        self._request: border.InferRequest | None = None
        self.model = ""

    def submit(self, request: border.InferRequest, deadline_s: float | None, size_bytes: int) -> None:
        """`size_bytes` is the length of the request's message."""
        request.deadline_s = deadline_s
        self.model = request.model
        size_bytes += self._sharing.claim(request.inputs, request.outputs)
        if not self._intake.hold(size_bytes):
            raise border.InferenceError(border.ErrorKind.UNAVAILABLE, wire_intake.FULL)
        self._held_bytes = size_bytes
        try:
            self._intake.submit(request)
        except border.InferenceError:
            self.close()
            raise
        self._request = request

    def close(self) -> None:
        """Gives the request up if it is not answered yet, and its bytes back."""
        if self._request is not None:
            self._request.cancel()
        self._intake.let_go(self._held_bytes)
        self._held_bytes = 0
        # Else the request, its answer and this would hold each other until garbage is searched for.
        self._request = self._done = None

    def give_up(self, rested: Callable[[], None]) -> None:
        """As `close`; `rested` is called once the engine has nothing more to do for the request."""
        self._rested = rested
        self.close()

    def __call__(self, answer: Answer, *, final: bool = True) -> None:
        if final:
            self._intake.finished()
            if self._rested is not None:
                self._rested()
        done, self._done = self._done, None
        if done is None:
            return
        if not final and isinstance(answer, border.InferResponse):
            answer = decoupled(answer.model_name)
        done(answer)


def decoupled(model: str) -> border.InferenceError:
    message = f"ModelInfer RPC doesn't support models with decoupled transaction policy, as '{model}'"
    return border.InferenceError(border.ErrorKind.UNSUPPORTED, message)


def _log_setting(name: str, value: predict_pb2.LogSettingsRequest.SettingValue) -> border.LogSetting:
    choice = value.WhichOneof("parameter_choice")
    if choice is None:
        raise datatypes.refused(f"log setting '{name}' has an invalid type: no value is set")
    found: border.LogSetting = getattr(value, choice)
    return found


def _repository_parameter(name: str, value: predict_pb2.ModelRepositoryParameter) -> border.Parameter | bytes:
    choice = value.WhichOneof("parameter_choice")
    if choice is None:
        raise datatypes.refused(f"parameter '{name}' has an invalid type: no value is set")
    found: border.Parameter | bytes = getattr(value, choice)
    return found
