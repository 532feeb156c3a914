"""Real ONNX models for sequences: one that shows what it is told, one that adds up, one whose state grows."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support import onnx_models

CONTROLS = """
control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } }
control_input { name: "END" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [-1, 1] } }
control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] } }
control_input { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_%s } }
"""
"""Of `told`; to be completed with the type of the id."""


def told(corrid: str = "UINT64", *, batched: bool = True) -> bytes:
    """TOLD_START (INT32), TOLD_END (FP32), TOLD_READY (BOOL), TOLD_ID are the controls; OUTPUT = INPUT (FP32).

    PLACE counts the rows of the batch from 1, SIZE is how many there are, both FP32. All are [batch, 1].
    """
    kinds = {"START": TensorProto.INT32, "END": TensorProto.FLOAT, "READY": TensorProto.BOOL}
    kinds["ID"] = onnx_models.ONNX_TYPES[corrid]
    dims: onnx_models.Dims = ["batch", 1] if batched else [1]
    nodes = [helper.make_node("Identity", [name], [f"TOLD_{name}"]) for name in kinds]
    nodes += [
        helper.make_node("Identity", ["INPUT"], ["OUTPUT"]),
        helper.make_node("Shape", ["INPUT"], ["shape"]),
        helper.make_node(
            "ConstantOfShape", ["shape"], ["ones"], value=numpy_helper.from_array(np.array([1], np.float32))
        ),
        helper.make_node("CumSum", ["ones", "AXIS"], ["PLACE"]),
        helper.make_node("ReduceSum", ["ones"], ["total"], keepdims=0),
        helper.make_node("Mul", ["ones", "total"], ["SIZE"]),
    ]
    info = helper.make_tensor_value_info
    return _model(
        nodes,
        [info("INPUT", TensorProto.FLOAT, dims), *(info(name, kind, dims) for name, kind in kinds.items())],
        [
            info("OUTPUT", TensorProto.FLOAT, dims),
            *(info(f"TOLD_{name}", kind, dims) for name, kind in kinds.items()),
            info("PLACE", TensorProto.FLOAT, dims),
            info("SIZE", TensorProto.FLOAT, dims),
        ],
        {"AXIS": np.array(0, np.int64)},
    )


def sums(*, batched: bool = True) -> bytes:
    """OUTPUT = SUM_OUT = SUM_IN + INPUT (FP32, [batch, 1])."""
    dims: onnx_models.Dims = ["batch", 1] if batched else [1]
    info = helper.make_tensor_value_info
    return _model(
        [
            helper.make_node("Add", ["SUM_IN", "INPUT"], ["SUM_OUT"]),
            helper.make_node("Identity", ["SUM_OUT"], ["OUTPUT"]),
        ],
        [info(name, TensorProto.FLOAT, dims) for name in ("INPUT", "SUM_IN")],
        [info(name, TensorProto.FLOAT, dims) for name in ("OUTPUT", "SUM_OUT")],
        {},
    )


def history(datatype: str = "FP32") -> bytes:
    """OUTPUT = PAST_OUT = PAST_IN followed by INPUT ([batch, 1]); PAST_IN is [batch, n]."""
    kind = onnx_models.ONNX_TYPES[datatype]
    info = helper.make_tensor_value_info
    return _model(
        [
            helper.make_node("Concat", ["PAST_IN", "INPUT"], ["PAST_OUT"], axis=1),
            helper.make_node("Identity", ["PAST_OUT"], ["OUTPUT"]),
        ],
        [info("INPUT", kind, ["batch", 1]), info("PAST_IN", kind, ["batch", "past"])],
        [info(name, kind, ["batch", "more"]) for name in ("OUTPUT", "PAST_OUT")],
        {},
    )


def picky() -> bytes:
    """OUTPUT = SUM_OUT = SUM_IN + TABLE[INPUT] with TABLE = [0, 10, 20, 30]: an INPUT (INT64, [batch, 1]) beyond 3 fails."""
    info = helper.make_tensor_value_info
    return _model(
        [
            helper.make_node("Gather", ["TABLE", "INPUT"], ["found"]),
            helper.make_node("Add", ["SUM_IN", "found"], ["SUM_OUT"]),
            helper.make_node("Identity", ["SUM_OUT"], ["OUTPUT"]),
        ],
        [info(name, TensorProto.INT64, ["batch", 1]) for name in ("INPUT", "SUM_IN")],
        [info(name, TensorProto.INT64, ["batch", 1]) for name in ("OUTPUT", "SUM_OUT")],
        {"TABLE": np.array([0, 10, 20, 30], np.int64)},
    )


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]],
) -> bytes:
    made = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializer=made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised
