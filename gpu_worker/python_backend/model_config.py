"""Configurations as a model's code sees them: dictionaries of the configuration's JSON, and the object to complete one.

A value that the configuration already has is never overwritten: where the two differ, the load fails.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

_TENSOR_KEYS = {"input": ["name", "data_type", "dims", "optional"], "output": ["name", "data_type", "dims"]}
_REQUIRED = ("name", "data_type", "dims")
_UNKNOWN = "TYPE_INVALID"


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What the configuration says of that input; None where there is none."""
    return next((each for each in model_config.get("input", ()) if each["name"] == name), None)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What the configuration says of that output; None where there is none."""
    return next((each for each in model_config.get("output", ()) if each["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


class ModelConfig:
    """What `auto_complete_config` gets, completes and gives back."""

    def __init__(self, model_config: str) -> None:
        self._model_config: dict[str, Any] = json.loads(model_config)

    def as_dict(self) -> dict[str, Any]:
        """A copy."""
        return copy.deepcopy(self._model_config)

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Raises ValueError where the configuration says another size."""
        given = self._model_config.get("max_batch_size", 0)
        if given > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {given}, but in auto-complete-config function for model "
                f"'{self._name}' specified max_batch_size {max_batch_size}"
            )
        if not given:
            self._model_config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Raises ValueError where the configuration says another scheduler."""
        found = next((key for key in ("sequence_batching", "ensemble_scheduling") if key in self._model_config), None)
        if found is not None:
            raise ValueError(
                f"Configuration specified scheduling_choice as '{found}', but auto-complete-config function for model "
                f"'{self._name}' tries to set scheduling_choice as 'dynamic_batching'"
            )
        self._model_config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """`decoupled` is all it may hold. Raises ValueError where the configuration says otherwise."""
        unknown = sorted(transaction_policy_dict.keys() - {"decoupled"})
        if unknown:
            raise ValueError(
                f"model transaction property in auto-complete-config function for model '{self._name}' contains "
                f"property other than 'decoupled': {unknown}"
            )
        if "decoupled" not in transaction_policy_dict:
            return
        wanted = bool(transaction_policy_dict["decoupled"])
        policy = self._model_config.setdefault("model_transaction_policy", {})
        if policy.get("decoupled") and not wanted:
            raise ValueError(
                "trying to change decoupled property in auto-complete-config for model "
                f"'{self._name}', which is already set to 'true'"
            )
        policy["decoupled"] = wanted

    def add_input(self, input: Mapping[str, Any]) -> None:  # noqa: A002 - the name that models know
        """A dictionary of name, data_type, dims and optional. Raises ValueError for what does not fit."""
        self._add("input", input)

    def add_output(self, output: Mapping[str, Any]) -> None:
        """A dictionary of name, data_type and dims. Raises ValueError for what does not fit."""
        self._add("output", output)

    @property
    def _name(self) -> str:
        return str(self._model_config.get("name", ""))

    def _add(self, kind: str, tensor: Mapping[str, Any]) -> None:
        where = f"in auto-complete-config function for model '{self._name}'"
        missing = next((key for key in _REQUIRED if key not in tensor), None)
        if missing is not None:
            raise ValueError(f"{kind} '{tensor.get('name', '')}' {where} is missing '{missing}' property.")
        if tensor.keys() - set(_TENSOR_KEYS[kind]):
            raise ValueError(f"{kind} '{tensor['name']}' {where} contains property other than {_TENSOR_KEYS[kind]}.")
        given = next((each for each in self._model_config.setdefault(kind, []) if each["name"] == tensor["name"]), None)
        if given is None:
            self._model_config[kind].append(dict(tensor))
        else:
            self._merge(kind, given, tensor)

    def _merge(self, kind: str, given: dict[str, Any], tensor: Mapping[str, Any]) -> None:
        for key, words in (("data_type", "datatype"), ("dims", "dims")):
            there = given.get(key)
            if there not in (None, [], _UNKNOWN) and there != tensor[key]:
                raise ValueError(
                    f"unable to load model '{self._name}', configuration expects {words} {there} for {kind} "
                    f"'{tensor['name']}', model provides {tensor[key]}"
                )
        given.update({key: tensor[key] for key in ("data_type", "dims")})
        if "optional" in tensor:
            given["optional"] = tensor["optional"]
