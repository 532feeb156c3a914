"""Models in Python answer as their code says: tensors of every type, errors, parameters, and what they are told."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from gpu_worker.engine import border, tensors
from tests.support import engine_client as client
from tests.support import python_models as models

pytestmark = pytest.mark.slow  # each model is a process that imports numpy


async def test_every_datatype_comes_back_as_it_went(repository: pathlib.Path) -> None:
    kinds = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]
    text = "max_batch_size: 0\n" + "".join(
        f'{way} {{ name: "{way.upper()}{index}" data_type: TYPE_{kind} dims: [-1] }}\n'
        for index, kind in enumerate([*kinds, "STRING"])
        for way in ("input", "output")
    )
    code = """
    def execute(self, requests):
        return [self.answer(each) for each in requests]

    def answer(self, request):
        inputs = request.inputs()
        assert all(each.is_cpu() for each in inputs)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(each.name().replace("INPUT", "OUTPUT"), each.as_numpy()) for each in inputs]
        )
    """
    models.put(repository, "all", code, text)
    async with client.running(repository) as asking:
        request, answered = asking.prepare("all", *([np.arange(3)] * 12))
        request.inputs.clear()
        for index, kind in enumerate(kinds):
            dtype = tensors.DATATYPES[kind].dtype
            data = np.arange(3).astype(dtype).tobytes()
            request.inputs.append(border.Tensor(f"INPUT{index}", kind, (3,), data))
        strings = tensors.encode_bytes(np.array([b"", b"\xff\x00", "é".encode()], object))
        request.inputs.append(border.Tensor("INPUT12", "BYTES", (3,), strings))
        (answer,) = await asking.ask_all([(request, answered)])
        assert isinstance(answer, border.InferResponse), answer
        for given, found in zip(request.inputs, answer.outputs, strict=True):
            assert (found.datatype, found.shape, bytes(found.data)) == (given.datatype, given.shape, bytes(given.data))


async def test_large_tensors_travel_whole(repository: pathlib.Path) -> None:
    code = """
    def execute(self, requests):
        found = []
        for each in requests:
            value = array(each)
            value += 1  # inputs may be written to, as in Triton
            found.append(response(value))
        return found
    """
    models.put(repository, "echo", code)
    value = np.arange(3_000_000, dtype=np.float32).reshape(1, -1)
    async with client.running(repository) as asking:
        for _ in range(3):
            assert np.array_equal(client.array(await asking.ask("echo", value)), value + 1)


async def test_only_outputs_that_are_asked_for_come(repository: pathlib.Path) -> None:
    text = models.config() + 'output { name: "MORE" data_type: TYPE_INT32 dims: [1] }'
    code = """
    def execute(self, requests):
        more = pb_utils.Tensor("MORE", np.array([[7]], np.int32))
        assert all(list(each.requested_output_names()) == ["MORE"] for each in requests)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", array(each)), more]) for each in requests]
    """
    models.put(repository, "two", code, text)
    async with client.running(repository) as asking:
        answer = await asking.ask("two", [[1, 2]], outputs=[border.RequestedOutput("MORE")])
        assert isinstance(answer, border.InferResponse), answer
        assert [each.name for each in answer.outputs] == ["MORE"]
        assert client.array(answer, "MORE").tolist() == [[7]]


async def test_a_raised_error_fails_its_batch_alone(repository: pathlib.Path) -> None:
    code = """
    def execute(self, requests):
        if array(requests[0])[0, 0] < 0:
            raise ValueError("below zero")
        return [response(array(each)) for each in requests]
    """
    models.put(repository, "picky", code)
    async with client.running(repository) as asking:
        failed = client.refusal(await asking.ask("picky", [[-1]]))
        assert failed.kind is border.ErrorKind.INTERNAL
        assert failed.message.startswith(
            "Failed to process the request(s) for model 'picky_0_0', message: ValueError: below zero\n\nAt:\n  "
        )
        assert "model.py(" in failed.message
        assert client.array(await asking.ask("picky", [[4]])).tolist() == [[4]]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("return None", "Expected a list in the execution response"),
        ("return []", "Number of InferenceResponse objects do not match"),
        ("return [7 for _ in requests]", "Expected an 'InferenceResponse' object in the execute function return list"),
        ("return [response(np.array([1j])) for _ in requests]", "complex128, which the protocol cannot carry"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
async def test_what_makes_no_sense_is_said(repository: pathlib.Path, code: str, words: str) -> None:
    models.put(repository, "odd", f"def execute(self, requests):\n    {code}\n")
    async with client.running(repository) as asking:
        assert words in client.refusal(await asking.ask("odd", [[1]])).message


async def test_errors_have_the_code_that_the_model_chose(repository: pathlib.Path) -> None:
    code = """
    def execute(self, requests):
        error = lambda each: pb_utils.TritonError(f"no {each.request_id()}", int(array(each)[0, 0]))
        return [pb_utils.InferenceResponse(error=error(each)) for each in requests]
    """
    models.put(repository, "codes", code)
    async with client.running(repository) as asking:
        for number, kind in enumerate(border.ErrorKind):
            refused = client.refusal(await asking.ask("codes", [[number]], id=kind.name))
            assert (refused.kind, refused.message) == (kind, f"no {kind.name}")


async def test_a_model_sees_the_request(repository: pathlib.Path) -> None:
    code = """
    def execute(self, requests):
        (each,) = requests
        told = [each.request_id(), each.correlation_id(), each.flags(), each.timeout(), each.priority(),
                each.model_name(), each.parameters(), each.is_cancelled()]
        return [response(np.array([[repr(told)]], object), parameters={"seen": True, "of": "me"})]
    """
    text = models.config(more="").replace(
        'output { name: "OUTPUT" data_type: TYPE_FP32', 'output { name: "OUTPUT" data_type: TYPE_STRING'
    )
    models.put(repository, "told", code, text)
    parameters: dict[str, border.Parameter] = {
        "sequence_id": 9,
        "sequence_start": True,
        "sequence_end": False,
        "timeout": 8_000_000,
        "priority": 2,
        "mine": "x",
    }
    async with client.running(repository) as asking:
        answer = await asking.ask("told", [[1]], id="abc", parameters=parameters)
        assert client.array(answer)[0, 0] == repr(["abc", 9, 1, 8_000_000, 2, "told", '{"mine": "x"}', False])
        assert isinstance(answer, border.InferResponse)
        assert answer.parameters == {"seen": True, "of": "me"}


async def test_a_model_is_told_what_it_is_and_finds_its_own_files(repository: pathlib.Path) -> None:
    code = """
    def initialize(self, args):
        import json, helper
        self.found = json.dumps([args, json.loads(args["model_config"])["input"][0]["dims"], helper.WORD,
                                 pb_utils.get_model_dir()])

    def execute(self, requests):
        return [response(np.array([[self.found]], object)) for _ in requests]
    """
    text = models.config().replace(
        'output { name: "OUTPUT" data_type: TYPE_FP32', 'output { name: "OUTPUT" data_type: TYPE_STRING'
    )
    directory = models.put(repository, "self", code, text)
    (directory / "1" / "helper.py").write_text("WORD = 'beside'")
    async with client.running(repository) as asking:
        arguments, dims, word, folder = json.loads(client.array(await asking.ask("self", [[1]]))[0, 0])
        assert (dims, word, folder) == ([-1], "beside", str(directory / "1"))
        assert arguments.pop("model_config")
        assert arguments == {
            "model_instance_kind": "CPU",
            "model_instance_name": "self_0_0",
            "model_instance_device_id": "0",
            "model_repository": str(directory),
            "model_version": "1",
            "model_name": "self",
        }
    assert sorted(each.name for each in (directory / "1").iterdir()) == ["helper.py", "model.py"]


async def test_a_configuration_is_completed_by_the_code(repository: pathlib.Path) -> None:
    code = """
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "INPUT", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_output({"name": "OUTPUT", "data_type": "TYPE_FP32", "dims": [-1]})
        config.set_max_batch_size(4)
        config.set_dynamic_batching()
        return config
    """
    models.put(repository, "own", code + models.ECHO.replace("\n", "\n    "), "")
    async with client.running(repository) as asking:
        config = await asking.engine.model_config("own", "")
        assert (config.max_batch_size, config.backend, config.platform) == (4, "python", "")
        assert config.HasField("dynamic_batching")
        assert (await asking.engine.model_metadata("own", "")).platform == "python"
        answers = await asking.ask_all([asking.prepare("own", [[float(index)]]) for index in range(9)])
        assert [client.array(each).tolist() for each in answers] == [[[index]] for index in range(9)]


@pytest.mark.parametrize(
    ("code", "text", "words"),
    [
        ("", None, "must have a function 'execute'"),
        ("raise KeyError('early')", None, "KeyError: 'early'"),
        ("def initialize(self, args): raise OSError('no weights')\n" + models.ECHO, None, "OSError: no weights"),
        ("def initialize(self, args): os._exit(7)\n" + models.ECHO, None, "exit status 7"),
        (models.ECHO, "", "input and output must be given"),
        (
            models.ECHO,
            models.config(more=models.parameter("execute_timeout_s", "soon")),
            "parameters.execute_timeout_s",
        ),
        (models.ECHO, models.config(more=models.parameter("EXECUTION_ENV_PATH", "e")), "EXECUTION_ENV_PATH is not"),
        (models.ECHO, models.config().replace("dims: [-1]", "dims: [-1] reshape { shape: [] }"), "reshape"),
        (
            "@staticmethod\ndef auto_complete_config(config):\n    config.set_max_batch_size(3)\n" + models.ECHO,
            None,
            "configuration specified max_batch_size 8",
        ),
    ],
)
async def test_what_cannot_be_loaded_says_why(
    repository: pathlib.Path, code: str, text: str | None, words: str
) -> None:
    models.put(repository, "bad", code or "pass", text)
    async with client.running(repository, control=client.EXPLICIT) as asking:
        with pytest.raises(border.InferenceError, match="load failed for model 'bad'") as refused:
            await asking.engine.load("bad", {})
        assert words in refused.value.message
