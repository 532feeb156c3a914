"""Modules that are imported when first used, because grpc, protobuf, yaml and rich make `tmsctl --help` slow."""

from __future__ import annotations

import importlib
import types
import typing

if typing.TYPE_CHECKING:
    from protos.tms.v1 import common_pb2, lease_pb2, pool_pb2
    from tmsctl import client, config, follow, leasefile, progress, render, requests, running, scaling, tunnel, values

    __all__ = [
        "client",
        "common_pb2",
        "config",
        "follow",
        "lease_pb2",
        "leasefile",
        "pool_pb2",
        "progress",
        "render",
        "requests",
        "running",
        "scaling",
        "tunnel",
        "values",
    ]


def __getattr__(name: str) -> types.ModuleType:
    if name.startswith("__"):
        raise AttributeError(name)
    return importlib.import_module(f"protos.tms.v1.{name}" if name.endswith("_pb2") else f"tmsctl.{name}")
