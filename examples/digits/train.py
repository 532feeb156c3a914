"""Trains a small classifier on the UCI handwritten digits and exports it as a model repository in the Triton layout.

Two versions come out: a linear model and a small neural network. The held-out digits go to a file beside the repository.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIG = """\
name: "digits"
backend: "onnxruntime"
max_batch_size: 64
input { name: "pixels" data_type: TYPE_FP32 dims: [ 64 ] }
output { name: "probabilities" data_type: TYPE_FP32 dims: [ 10 ] }
version_policy { all { } }
instance_group { kind: KIND_CPU count: 1 }
dynamic_batching { max_queue_delay_microseconds: 100 }
"""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training left on the disk, and the accuracy of each version on the held-out digits."""

    repository: pathlib.Path
    held_out: pathlib.Path
    accuracies: dict[str, float]


def train(into: pathlib.Path) -> Trained:
    """Writes `into`/repository/digits/{config.pbtxt,1,2} and `into`/held_out.npz (pixels FP32 [n,64], labels INT64 [n])."""
    from sklearn import datasets, linear_model, model_selection, neural_network

    digits = datasets.load_digits()
    pixels = (digits.data / 16.0).astype(np.float32)
    split = model_selection.train_test_split(
        pixels, digits.target, test_size=0.25, random_state=0, stratify=digits.target
    )
    train_x, test_x, train_y, test_y = split
    models = {
        "1": linear_model.LogisticRegression(max_iter=2000),
        "2": neural_network.MLPClassifier((64,), max_iter=400, random_state=0),
    }
    for version, model in models.items():
        model.fit(train_x, train_y)
        _export(model, into / "repository" / "digits" / version / "model.onnx")
    (into / "repository" / "digits" / "config.pbtxt").write_text(CONFIG)
    held_out = into / "held_out.npz"
    np.savez(held_out, pixels=test_x, labels=test_y.astype(np.int64))
    scores = {version: float(model.score(test_x, test_y)) for version, model in models.items()}
    return Trained(into / "repository", held_out, scores)


def held_out(path: pathlib.Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The digits that no version was trained on."""
    with np.load(path) as data:
        return data["pixels"], data["labels"]


def _export(model: Any, path: pathlib.Path) -> None:
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType
    from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs

    inputs = [("pixels", FloatTensorType([None, 64]))]
    exported = skl2onnx.to_onnx(model, initial_types=inputs, options={id(model): {"zipmap": False}}, target_opset=17)
    graph = select_model_inputs_outputs(exported, ["probabilities"])
    used = {name for node in graph.graph.node for name in node.input}
    kept = [constant for constant in graph.graph.initializer if constant.name in used]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph.SerializeToString())
