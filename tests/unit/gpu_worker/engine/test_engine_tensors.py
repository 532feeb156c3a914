from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from gpu_worker.engine import border, tensors

FIXED = sorted(name for name, datatype in tensors.DATATYPES.items() if datatype.item_bytes)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_size_elements_survive_the_wire_without_a_copy(name: str) -> None:
    datatype = tensors.DATATYPES[name]
    wire = np.arange(6).astype(datatype.dtype).tobytes()
    array = tensors.view(wire, datatype, (2, 3))
    assert array.shape == (2, 3)
    assert not array.flags.owndata
    assert bytes(tensors.to_wire(array)) == wire


@hypothesis.given(strategies.sampled_from(FIXED), strategies.data())
def test_any_fixed_size_tensor_survives_the_wire(name: str, data: strategies.DataObject) -> None:
    datatype = tensors.DATATYPES[name]
    array = data.draw(arrays.arrays(datatype.dtype, arrays.array_shapes(min_dims=0, min_side=0, max_dims=4)))
    array = np.ascontiguousarray(array).reshape(array.shape)
    wire = tensors.to_wire(array)
    assert tensors.size_bytes(wire) == tensors.element_count(array.shape) * datatype.item_bytes
    assert tensors.view(wire, datatype, array.shape).tobytes() == array.tobytes()


def test_a_misaligned_buffer_is_copied_into_place() -> None:
    wire = np.arange(3, dtype="<f4").tobytes()
    array = tensors.view(memoryview(b"\0" + wire)[1:], tensors.DATATYPES["FP32"], (3,))
    assert array.flags.aligned
    assert array.tolist() == [0.0, 1.0, 2.0]


@hypothesis.given(strategies.lists(strategies.text()))
def test_strings_survive_the_wire(texts: list[str]) -> None:
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    wire = tensors.encode_bytes(array)
    assert tensors.decode_bytes(wire, (len(texts),), "X").tolist() == texts


@hypothesis.given(strategies.binary(max_size=40), strategies.integers(0, 5))
def test_no_wire_form_breaks_the_string_decoder(wire: bytes, count: int) -> None:
    refusal: border.InferenceError | None = None
    elements: list[bytes] = []
    try:
        elements = tensors.split_bytes(wire, count, "X")
    except border.InferenceError as error:
        refusal = error
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    if refusal is None:
        assert len(elements) == count
        assert tensors.encode_bytes(array) == wire
    else:
        assert refusal.kind is border.ErrorKind.INVALID_ARGUMENT
        assert "'X'" in refusal.message


@pytest.mark.parametrize(
    ("wire", "fragment"),
    [
        (b"\1\0\0", "incomplete string length for inference input 'X', expecting 4 bytes but only 3 bytes available"),
        (
            b"\5\0\0\0abc",
            "incomplete string data for inference input 'X', expecting 5 bytes but only 3 bytes available",
        ),
        (b"\1\0\0\0a", "expected 2 string elements for inference input 'X', got 1"),
        (b"\0\0\0\0" * 3, "expected 2 string elements for inference input 'X', got more"),
        (b"\1\0\0\0a\1\0\0\0\xff", "a string element of inference input 'X' is not UTF-8"),
    ],
)
def test_what_is_wrong_with_strings_is_told(wire: bytes, fragment: str) -> None:
    with pytest.raises(border.InferenceError) as refused:
        tensors.decode_bytes(wire, (2,), "X")
    assert refused.value.message.startswith(fragment)


@pytest.mark.parametrize(("shape", "count"), [((), 1), ((2, 3), 6), ((0, 5), 0)])
def test_element_count(shape: tuple[int, ...], count: int) -> None:
    assert tensors.element_count(shape) == count


@pytest.mark.parametrize("shape", [(-1,), (2**62, 2**62), (0, 2**63)])
def test_impossible_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"negative|too large"):
        tensors.element_count(shape)
