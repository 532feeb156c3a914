"""Who is calling, and what the call's metadata says."""

from __future__ import annotations

from typing import Any

import grpc

from tms_server.model import caller

Context = grpc.aio.ServicerContext[Any, Any]
_SUBJECT = ("x509_subject", "x509_common_name", "x509_subject_alternative_name")


def of(context: Context) -> caller.Caller:
    """The subject of the client's certificate under mutual TLS, else anonymous."""
    properties = context.auth_context()
    for key in _SUBJECT:
        for value in properties.get(key, ()):
            return caller.Caller(value.decode(errors="replace"))
    return caller.ANONYMOUS


def metadata(context: Context, key: str) -> str:
    """A value of the call's metadata, empty without one."""
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, str) else value.decode(errors="replace")
    return ""
