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
    if config.backend not in {"", configuration.BACKEND}:
        raise unsupported(config.name, f"backend '{config.backend}' (only '{configuration.BACKEND}' is)")
    if config.platform not in {"", configuration.PLATFORM, _ENSEMBLE}:
        raise unsupported(config.name, f"platform '{config.platform}' (only '{configuration.PLATFORM}' is)")
    refused = {field.shown: field.words for field in fields.given(config) if field.refused}
    if refused:
        told = "; ".join(f"{path} ({words})" for path, words in refused.items())
        raise unsupported(config.name, f"{told}; remove it")


def unsupported(model: str, what: str) -> border.InferenceError:
    return border.InferenceError(
        border.ErrorKind.UNSUPPORTED, f"configuration of model '{model}': not supported: {what}"
    )
