"""Whether what lives in the cluster still is what was applied.

Compares only what was applied: defaults that the API server fills in, and what others add beside, never count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tms_server.backends.kubernetes import quantities

_EXACT = frozenset({"selector", "matchLabels", "nodeSelector"})
"""Maps in which one key more changes the meaning."""
_AMOUNTS = frozenset({"limits", "requests", "sizeLimit", "value", "averageValue"})
_KEYS = ("name", "mountPath", "containerPort", "port", "topologyKey")


def covers(applied: Any, live: Any, field: str = "") -> bool:
    """Whether everything applied is there as applied."""
    if isinstance(applied, Mapping):
        return _covers_map(applied, live, field)
    if isinstance(applied, list):
        return _covers_list(applied, live, field)
    if isinstance(applied, str) and isinstance(live, str) and applied != live and field in _AMOUNTS:
        amount = quantities.parse(applied)
        return amount is not None and amount == quantities.parse(live)
    # What is empty is left out by the API server.
    return bool(applied == live or (not applied and live is None))


def digest(applied: Mapping[str, Any]) -> str:
    """Changes with what is applied, so that a field that is applied no more is noticed too."""
    return hashlib.sha256(json.dumps(applied, sort_keys=True).encode()).hexdigest()[:16]


def _covers_map(applied: Mapping[str, Any], live: Any, field: str) -> bool:
    if live is None:
        return not applied
    if not isinstance(live, Mapping):
        return False
    if field in _EXACT and not applied.keys() >= live.keys():
        return False
    inner = field if field in _AMOUNTS else ""
    return all(covers(each, live.get(key), inner or key) for key, each in applied.items())


def _covers_list(applied: Sequence[Any], live: Any, field: str) -> bool:
    if live is None:
        return not applied
    if not isinstance(live, list):
        return False
    key = _key(applied)
    if key is None:
        return len(applied) == len(live) and all(
            covers(ours, theirs, field) for ours, theirs in zip(applied, live, strict=True)
        )
    found = {each.get(key): each for each in live if isinstance(each, Mapping)}
    return all(covers(each, found.get(each[key])) for each in applied)


def _key(applied: Sequence[Any]) -> str | None:
    """What tells the elements apart; None for lists that are compared as a whole."""
    if not applied or not all(isinstance(each, Mapping) for each in applied):
        return None
    return next((key for key in _KEYS if len({each.get(key) for each in applied} - {None}) == len(applied)), None)
