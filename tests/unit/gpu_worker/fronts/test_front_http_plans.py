"""What the HTTP front remembers of headers changes no request and no answer."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.engine import border
from gpu_worker.http import decoding, encoding, messages, plans

INPUTS = st.fixed_dictionaries(
    {"name": st.sampled_from(["A", "B"]), "shape": st.just([2]), "datatype": st.sampled_from(["INT8", "INT16"])},
    optional={"data": st.just([1, 2]), "parameters": st.just({"binary_data_size": 2}) | st.just({})},
)
HEADERS = st.fixed_dictionaries(
    {"inputs": st.lists(INPUTS, max_size=2)},
    optional={
        "id": st.sampled_from(["", "7"]),
        "parameters": st.sampled_from([{}, {"binary_data_output": True}, {"priority": 2}]),
        "outputs": st.sampled_from([[], [{"name": "Y", "parameters": {"binary_data": False}}]]),
    },
)
BODIES = st.tuples(HEADERS, st.binary(max_size=5))


def outcome(decode: Any, body: bytes, json_bytes: int | None) -> Any:
    try:
        found: decoding.Inference = decode("m", body, json_bytes)
    except border.InferenceError as error:
        return error.kind, error.message
    inputs = [(each.name, each.datatype, each.shape, bytes(each.data), each.region) for each in found.inputs]
    return found.id, inputs, found.outputs, found.parameters, found.wishes


@given(st.lists(BODIES, max_size=8))
def test_what_is_remembered_changes_no_request(bodies: list[tuple[dict[str, Any], bytes]]) -> None:
    remembering = plans.Plans()
    for header, binary in [*bodies, *((header, binary[::-1]) for header, binary in bodies)]:
        json = orjson.dumps(header)
        assert outcome(remembering.decode, json + binary, len(json)) == outcome(
            decoding.decode, json + binary, len(json)
        )


def test_no_more_is_remembered_than_the_bound() -> None:
    remembering = plans.Plans()
    for number in range(3000):
        entry = {"name": str(number), "shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": 1}}
        json = orjson.dumps({"inputs": [entry]})
        assert remembering.decode("m", json + b"x", len(json)).inputs[0].name == str(number)
        assert 0 < len(remembering._plans) <= 1024


WISHES = st.builds(decoding.Wishes, st.booleans(), st.dictionaries(st.sampled_from("YZ"), st.booleans(), max_size=2))
OUTPUTS = st.lists(
    st.builds(
        lambda name, data: border.Tensor(name, "INT8", (len(data),), data),
        st.sampled_from("YZ"),
        st.sampled_from([b"", b"1", b"23"]),
    ),
    max_size=2,
)
ANSWERS = st.builds(
    border.InferResponse,
    st.sampled_from(["m", "n"]),
    st.sampled_from(["1", "2"]),
    st.sampled_from(["", "7"]),
    OUTPUTS,
    st.sampled_from([{}, {"p": 1}]),
)


def shown(response: messages.Response) -> tuple[int, bytes, bytes, bytes]:
    return response.status, b"".join(response.parts), response.content_type, response.headers


@given(st.lists(st.tuples(ANSWERS, WISHES), max_size=12))
def test_what_is_remembered_changes_no_answer(asked: list[tuple[border.InferResponse, decoding.Wishes]]) -> None:
    encoder = encoding.Encoder()
    for answer, wishes in [*asked, *asked]:
        quick = encoder.quickly(answer, wishes)
        if quick is not None:
            assert shown(quick) == shown(encoding.encode(answer, wishes))


def test_binary_answers_without_an_id_are_quick() -> None:
    def quick(identifier: str) -> messages.Response | None:
        answer = border.InferResponse("m", "1", identifier, [border.Tensor("Y", "INT8", (1,), b"1")])
        return encoding.Encoder().quickly(answer, decoding.Wishes(binary=True))

    assert quick("") is not None
    assert quick("7") is None
