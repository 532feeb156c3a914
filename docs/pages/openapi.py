"""The description of the worker's HTTP API after OpenAPI."""

from __future__ import annotations

import json

from gpu_worker.http import openapi

VERSION = "2.0"
"""That of the protocol."""


def text() -> str:
    """The description as JSON."""
    return json.dumps(openapi.document(VERSION), indent=1) + "\n"
