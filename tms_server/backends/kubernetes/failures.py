"""From answers of the API server to the errors of the control plane. Only here is read what a refusal says."""

from __future__ import annotations

import json
from typing import Any

from tms_server.model import errors

_TOO_MANY = ("exceeded quota", "must specify limits", "must specify requests")


class Refused(errors.FailedPrecondition):
    """The object was looked at and not let in: invalid, or against a policy of the cluster."""


class Exhausted(errors.ResourceExhausted):
    """A quota of the namespace has no room."""


def of_answer(status: int, text: str, asked: str) -> errors.TmsError:
    """What an answer that is no success means. `asked` says what was asked for."""
    body = _body(text)
    message, reason = str(body.get("message") or text[:500]), str(body.get("reason") or "")
    said = f"{asked}: {message}"
    if status == 403:
        return _forbidden(message, said)
    if status == 409:
        return errors.AlreadyExists(said) if reason == "AlreadyExists" else errors.Conflict(said)
    plain: dict[int, type[errors.TmsError]] = {
        400: Refused,
        401: errors.PermissionDenied,
        404: errors.NotFound,
        410: errors.RevisionGone,
        413: Refused,
        422: Refused,
    }
    if status == 401:
        said = f"{asked}: the API server does not know these credentials; check the kubeconfig or the service account"
    return plain.get(status, errors.Unavailable)(said)


def _forbidden(message: str, said: str) -> errors.TmsError:
    if any(words in message for words in _TOO_MANY):
        return Exhausted(said)
    # What the authorizer says names verb, resource and namespace already.
    if "cannot" in message and "resource" in message:
        return errors.PermissionDenied(said)
    return Refused(said)


def _body(text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
