"""What a configuration may ask that this server does not do: refused by name with the reason, never quietly ignored.

Pure; `fields` says what is done.
"""

from __future__ import annotations

from gpu_worker.engine import border
from gpu_worker.repository import configuration, fields
from protos.inference.v2 import model_config_pb2

_ENSEMBLE = "ensemble"


def check(config: model_config_pb2.ModelConfig) -> None:
    """Raises InferenceError UNSUPPORTED naming every field that asks for what is not done here."""
    if config.backend not in {"", configuration.BACKEND, configuration.PYTHON}:
        known = f"known are '{configuration.BACKEND}' and '{configuration.PYTHON}'"
        raise unsupported(config.name, f"backend '{config.backend}' ({known})")
    if config.platform not in {"", configuration.PLATFORM, _ENSEMBLE}:
        raise unsupported(config.name, f"platform '{config.platform}' (only '{configuration.PLATFORM}' is)")
    refused = {field.shown: field.words for field in fields.given(config) if field.refused}
    if refused:
        told = "; ".join(f"{path} ({words})" for path, words in refused.items())
        raise unsupported(config.name, f"{told}; remove it")


def check_backend(config: model_config_pb2.ModelConfig, backend: str) -> None:
    """Raises InferenceError UNSUPPORTED naming what the other backend alone does."""
    if backend == configuration.PYTHON:
        refused = [path for path, given in _onnx_only(config).items() if given]
        words = "models in Python read their inputs themselves"
    else:
        refused = ["model_transaction_policy.decoupled"] if config.model_transaction_policy.decoupled else []
        words = "an ONNX model has one answer to every request"
    if refused:
        raise unsupported(config.name, f"{', '.join(refused)} ({words}); remove it")
    if config.model_transaction_policy.decoupled and config.response_cache.enable:
        raise unsupported(config.name, "response_cache.enable (a decoupled model has no one answer to keep); remove it")


def _onnx_only(config: model_config_pb2.ModelConfig) -> dict[str, bool]:
    tensors = [("input", each) for each in config.input] + [("output", each) for each in config.output]
    reshaped = {f"{kind}.reshape": True for kind, each in tensors if each.HasField("reshape")}
    return {"batch_input": bool(config.batch_input), "batch_output": bool(config.batch_output), **reshaped}


def unsupported(model: str, what: str) -> border.InferenceError:
    return border.InferenceError(
        border.ErrorKind.UNSUPPORTED, f"configuration of model '{model}': not supported: {what}"
    )
