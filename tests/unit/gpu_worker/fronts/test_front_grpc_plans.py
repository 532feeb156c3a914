"""Messages that are read and written in parts say what protobuf alone would have said."""

from __future__ import annotations

from typing import Any

from google.protobuf import message as protobuf
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.engine import border
from gpu_worker.grpc import codec, plans, stream
from protos.inference.v2 import predict_pb2

texts = st.text(max_size=6)
shapes = st.lists(st.integers(-2, 2**40), max_size=3)
datas = st.binary(max_size=9) | st.sampled_from([b"", bytes(5000)])
parameters = st.dictionaries(
    st.sampled_from(["a", "priority", "triton_x", "sequence_id"]),
    st.sampled_from(
        [
            predict_pb2.InferParameter(int64_param=1),
            predict_pb2.InferParameter(string_param="s"),
            predict_pb2.InferParameter(bool_param=True),
            predict_pb2.InferParameter(),
        ]
    ),
    max_size=2,
)


@st.composite
def requests(draw: st.DrawFn) -> predict_pb2.ModelInferRequest:
    count = draw(st.integers(0, 3))
    message = predict_pb2.ModelInferRequest(
        model_name=draw(texts), model_version=draw(st.sampled_from(["", "1", "x"])), id=draw(texts)
    )
    for name, value in draw(parameters).items():
        message.parameters[name].CopyFrom(value)
    for index in range(count):
        tensor = message.inputs.add(name=draw(texts) + str(index), datatype="UINT8", shape=draw(shapes))
        if draw(st.integers(0, 9)) == 0:
            tensor.contents.uint_contents.extend([1, 2])
        if draw(st.integers(0, 9)) == 0:
            tensor.parameters["shared_memory_region"].string_param = "r"
            tensor.parameters["shared_memory_byte_size"].int64_param = 4
    for name in draw(st.lists(texts, max_size=2)):
        message.outputs.add(name=name)
    message.raw_input_contents.extend(draw(st.lists(datas, min_size=count, max_size=count)))
    if draw(st.integers(0, 9)) == 0:
        message.raw_input_contents.extend(draw(st.lists(datas, max_size=1)))
    return message


def field(tag: int, data: bytes, *, long: bool) -> bytes:
    """A length-delimited field; `long` writes its length in more bytes than needed."""
    length = bytearray()
    value = len(data)
    while value > 0x7F:
        length.append(value & 0x7F | 0x80)
        value >>= 7
    length.append(value)
    if long:
        length[-1] |= 0x80
        length.append(0)
    return bytes((tag,)) + length + data


odd = st.sampled_from([
    field(0x1A, b"two", long=False),
    field(0x1A, b"\xff", long=False),
    field(0x0A, b"other", long=False),
    field(0x3A, b"raw", long=True),
    field(0x22, b"\x0a\x01k\x12\x02\x08\x01", long=True),
    b"\x18\x05",  # the id's number, another wire type
    b"\xa2\x06\x03abc",  # field 100, which is unknown
    b"\x40\x01",  # field 8
    b"\x03\x04",  # a group
    b"\x02\x00",  # field 0
    b"\x3a\x05ab",  # longer than the message
    b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x3a",
    b"",
])  # fmt: skip


def outcome(decode: Any) -> Any:
    """What a decoder finds or refuses, in values that compare."""
    try:
        found: border.InferRequest = decode()
    except (protobuf.DecodeError, border.InferenceError) as error:
        return type(error), str(error) if isinstance(error, border.InferenceError) else ""
    inputs = [(each.name, each.datatype, each.shape, bytes(each.data), each.region) for each in found.inputs]
    return found.model, found.version, found.id, inputs, found.outputs, found.parameters


def whole(data: bytes) -> border.InferRequest:
    message = predict_pb2.ModelInferRequest.FromString(data)
    return codec.decode(message, message.raw_input_contents, reply)


def reply(answer: Any, *, final: bool = True) -> None:
    raise AssertionError


SHARED = plans.Plans()


@given(requests(), st.lists(odd, max_size=2), st.integers(0, 4))
def test_requests_are_what_protobuf_finds_in_them(
    message: predict_pb2.ModelInferRequest, odds: list[bytes], place: int
) -> None:
    data = message.SerializeToString()
    # Between the fields at the start, or behind the tensors.
    data = b"".join(odds) + data if place == 0 else data + b"".join(odds) if place == 1 else data
    expected = outcome(lambda: whole(data))
    for form in (data, memoryview(data), bytearray(data)):
        for made in (plans.Plans(), SHARED, SHARED):
            assert outcome(lambda form=form, made=made: made.decode(form, reply)) == expected


@given(requests(), st.randoms(use_true_random=False))
def test_fields_in_any_order_are_what_protobuf_finds(message: predict_pb2.ModelInferRequest, order: Any) -> None:
    parts = [predict_pb2.ModelInferRequest(**{name: getattr(message, name)}) for name in ("model_name", "id")]
    parts += [predict_pb2.ModelInferRequest(inputs=[each]) for each in message.inputs]
    parts += [predict_pb2.ModelInferRequest(raw_input_contents=[each]) for each in message.raw_input_contents]
    order.shuffle(parts)
    data = b"".join(part.SerializeToString() for part in parts)
    assert outcome(lambda: SHARED.decode(data, reply)) == outcome(lambda: whole(data))


@given(st.binary(max_size=60))
def test_any_bytes_are_what_protobuf_finds_in_them(data: bytes) -> None:
    assert outcome(lambda: SHARED.decode(data, reply)) == outcome(lambda: whole(data))


def framed(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4) + data


def known(made: plans.Plans, data: bytes) -> Any:
    """The outcome for a framed message, by what was learned if anything fits."""
    found = made.known(data, reply)
    if found is None:
        return None
    return outcome(lambda: found)


@given(requests(), requests(), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=2))
def test_what_was_learned_of_a_message_finds_nothing_else_in_others(
    message: predict_pb2.ModelInferRequest, other: predict_pb2.ModelInferRequest, changes: list[tuple[int, int]]
) -> None:
    """However near the next message is to it: other bytes anywhere, another id."""
    made = plans.Plans()
    data = message.SerializeToString()
    for _ in range(3):
        outcome(lambda: made.decode(data, reply))
    same = known(made, framed(data))
    found = outcome(lambda: whole(data))
    if isinstance(found[0], str) and message.raw_input_contents and len(data) <= 4096:
        assert same is not None or any(tensor.parameters for tensor in message.inputs)
    assert same in (None, outcome(lambda: whole(data)))
    near = bytearray(data)
    for place, value in changes:
        if near:
            near[place % len(near)] = value
    named = predict_pb2.ModelInferRequest()
    named.CopyFrom(message)
    named.id = "\u00e4" * (len(message.id.encode()) // 2)
    for each in (bytes(near), named.SerializeToString(), other.SerializeToString()):
        assert known(made, framed(each)) in (None, outcome(lambda each=each: whole(each)))
    assert known(made, b"\1" + framed(data)[1:]) is None


def test_requests_that_differ_in_id_and_data_alone_are_known() -> None:
    made = plans.Plans()
    forms = set()
    for identifier, byte in (("aaa", 1), ("bbb", 2), ("ccc", 3)):
        message = predict_pb2.ModelInferRequest(model_name="m", id=identifier)
        message.raw_input_contents.extend([bytes([byte]) * 8, b"", bytes([byte])])
        for name, size in (("x", 8), ("y", 0), ("z", 1)):
            message.inputs.add(name=name, datatype="UINT8", shape=[size])
        message.outputs.add(name="o")
        data = message.SerializeToString()
        made.decode(data, reply)
        made.decode(data, reply)
        found = made.known(framed(data), reply)
        assert found is not None
        assert found.id == identifier
        assert [bytes(each.data) for each in found.inputs] == list(message.raw_input_contents)
        forms.add(found.form)
    assert len(forms) == 1


def test_what_is_learned_is_bounded() -> None:
    made = plans.Plans()
    for index in range(5000):
        message = predict_pb2.ModelInferRequest(model_name=f"m{index % 7}", raw_input_contents=[bytes(index % 700)])
        message.inputs.add(name=f"x{index % 9}", datatype="UINT8", shape=[index % 700])
        data = message.SerializeToString()
        for _ in range(2):
            made.decode(data, reply)
    assert len(made._templates) <= 257
    assert all(len(each) <= 4 for each in made._templates.values())


tensors = st.builds(
    border.Tensor,
    texts,
    st.sampled_from(["FP32", "BYTES"]),
    shapes.map(tuple),
    st.binary(max_size=300) | st.just(bytes(70000)),
    st.none() | st.none() | st.just(border.Region("r", 1, 2)),
)
answers = st.builds(
    border.InferResponse,
    texts,
    st.just("1"),
    texts,
    st.lists(tensors, max_size=3),
    st.just({}) | st.just({"a": 1}),
)


@given(answers)
def test_answers_are_what_protobuf_writes(answer: border.InferResponse) -> None:
    for _ in range(2):
        expected = codec.encode(answer).SerializeToString()
        assert b"".join(SHARED.encode(answer)) == expected
        parts, size = SHARED.frame(answer)
        assert b"".join(parts) == framed(expected)
        assert size == len(expected) + 5


@given(answers, st.booleans())
def test_answers_of_streams_say_what_protobuf_says(answer: border.InferResponse, final: bool) -> None:  # noqa: FBT001
    expected = stream.MESSAGES.encode(answer, final=final)
    for _ in range(2):
        told = SHARED.encode_streamed(answer, final=final)
        assert predict_pb2.ModelStreamInferResponse.FromString(b"".join(told)) == expected
        assert all(any(piece is tensor.data for piece in told) for tensor in answer.outputs)


def test_large_tensors_are_not_copied() -> None:
    message = predict_pb2.ModelInferRequest(model_name="m", raw_input_contents=[bytes(5000)])
    message.inputs.add(name="x", datatype="UINT8", shape=[5000])
    data = message.SerializeToString()
    (tensor,) = plans.Plans().decode(data, reply).inputs
    assert isinstance(tensor.data, memoryview)
    assert tensor.data.obj is data
    pieces = plans.Plans().encode(border.InferResponse("m", "1", "", [tensor]))
    assert pieces[-1] is tensor.data


def test_what_is_remembered_is_bounded() -> None:
    made = plans.Plans()
    for index in range(3000):
        message = predict_pb2.ModelInferRequest(model_name=f"m{index}", raw_input_contents=[b"x"])
        message.inputs.add(name="x", datatype="UINT8", shape=[1])
        made.decode(message.SerializeToString(), reply)
        made.encode(border.InferResponse(f"m{index}", "1", "", [border.Tensor("x", "UINT8", (1,), b"x")]))
    assert len(made._requests) <= 1024
    assert len(made._answers) <= 1024
    message = predict_pb2.ModelInferRequest(model_name="m" * 5000, raw_input_contents=[b"x"])
    message.inputs.add(name="x", datatype="UINT8", shape=[1])
    made.decode(message.SerializeToString(), reply)
    assert all(len(key) <= 4096 for key in made._requests)
