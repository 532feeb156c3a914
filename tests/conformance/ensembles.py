"""The ensembles of the suite: configurations that both servers get as they are. Pure.

None is loaded at the start. What they are composed of is, but for `idle`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.support.ensembles import Step, Tensors, chain, config

_FOUR = ("FP32", [4])
_ROW: Tensors = {"IN": _FOUR}
_ANY: Tensors = {"IN": ("FP32", [-1])}
_OUT: Tensors = {"OUT": ("FP32", [-1])}
_SAME: Step = ("id_fp32", {"INPUT": "IN"}, {"OUTPUT": "OUT"})
_COPY: Step = ("batched", {"INPUT": "IN"}, {"OUTPUT": "COPY"})
_SUM: Step = ("add_sub", {"INPUT0": "COPY", "INPUT1": "IN"}, {"OUTPUT0": "SUM"})
_BOTH: Tensors = {"SUM": _FOUR, "COPY": _FOUR}
_EIGHT: Tensors = {"IN": ("FP32", [8])}

TEXTS: Mapping[str, str] = {
    # Steps side by side, steps after each other.
    "e_fork": config(_ROW, _BOTH, [("add_sub", {"INPUT0": "IN", "INPUT1": "IN"}, {"OUTPUT0": "SUM"}), _COPY], batch=4),
    "e_chain": config(_ROW, _BOTH, [_COPY, _SUM], batch=4),
    "e_life": chain("idle", "id_fp32", dims=[-1], batch=0),
    "e_outer": config(_ANY, _OUT, [("e_life", {"IN": "IN"}, {"OUT": "OUT"})]),
    "e_counted": chain("batched", "counted"),
    "e_version": chain("versioned:1", dims=[-1], batch=0),
    "e_picky": config(
        {"IN": ("INT64", [1])}, {"OUT": ("INT64", [1])}, [("picky", {"INPUT": "IN"}, {"OUTPUT": "OUT"})], batch=8
    ),
    # Models that batch in an ensemble that does not.
    "e_single": chain("batched", batch=0),
    "e_rows": config(
        {"IN": ("FP32", [-1, 4])}, {"OUT": ("FP32", [-1, 4])}, [("batched", {"INPUT": "IN"}, {"OUTPUT": "OUT"})]
    ),
    "e_optional": config(
        {"IN": ("FP32", [-1]), "MORE": ("FP32", [-1])},
        {"OUT": ("FP32", [-1]), "OUT2": ("FP32", [-1])},
        [_SAME, ("id_fp32", {"INPUT": "MORE"}, {"OUTPUT": "OUT2"})],
    ).replace('name: "MORE"', 'name: "MORE" optional: true'),
    "e_sequence": config(
        {"IN": ("FP32", [1])}, {"OUT": ("FP32", [1])}, [("sequence", {"INPUT": "IN"}, {"OUTPUT": "OUT"})], batch=4
    ),
    "e_classes": config(_EIGHT, {"OUT": ("FP32", [8])}, [("classes", {"INPUT": "IN"}, {"OUTPUT": "OUT"})], batch=8),
    # What cannot be loaded, since the models do not fit.
    "e_nowhere": chain("nowhere", dims=[-1], batch=0),
    "e_broken": chain("broken", dims=[-1], batch=0),
    "e_seven": chain("versioned:7", dims=[-1], batch=0),
    "e_self": config(_ANY, _OUT, [("e_self", {"IN": "IN"}, {"OUT": "OUT"})]),
    "e_type": config({"IN": ("INT32", [-1])}, _OUT, [_SAME]),
    "e_shape": config({"IN": ("FP32", [2, 2])}, _OUT, [_SAME]),
    "e_batch": chain("batched", batch=16),
    "e_input": config(_ANY, _OUT, [("id_fp32", {"INPUT": "IN", "NO": "IN"}, {"OUTPUT": "OUT"})]),
    "e_output": config(_ANY, _OUT, [("id_fp32", {"INPUT": "IN"}, {"NO": "OUT"})]),
    "e_unmapped": config(_ROW, {"OUT": _FOUR}, [("add_sub", {"INPUT0": "IN"}, {"OUTPUT0": "OUT"})]),
    # What contradicts itself.
    "e_twice": config(_ANY, _OUT, [_SAME, _SAME]),
    "e_unwritten": config(_ANY, {**_OUT, "MORE": ("FP32", [-1])}, [_SAME]),
    "e_unused_input": config({**_ANY, "MORE": ("FP32", [-1])}, _OUT, [_SAME]),
    "e_unused_tensor": config(
        _ROW,
        {"SUM": _FOUR},
        [("add_sub", {"INPUT0": "IN", "INPUT1": "IN"}, {"OUTPUT0": "SUM", "OUTPUT1": "LEFT"})],
        batch=4,
    ),
    "e_circle": config(
        _ROW,
        {"OUT": _FOUR},
        [
            ("add_sub", {"INPUT0": "IN", "INPUT1": "B"}, {"OUTPUT0": "OUT", "OUTPUT1": "A"}),
            ("batched", {"INPUT": "A"}, {"OUTPUT": "B"}),
        ],
    ),
    "e_no_step": config(_ANY, _OUT, []),
    "e_instances": config(_ANY, _OUT, [_SAME], more="instance_group [{count: 1 kind: KIND_CPU}]"),
}
