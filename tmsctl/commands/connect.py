"""The command that brings a lease to local ports."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tmsctl import errors, late, options, session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ports:
    """Where to listen; 0 takes a free port."""

    http: Annotated[int, typer.Option("--http", metavar="PORT", min=0, max=65535, help="For V2 over HTTP.")] = 8000
    grpc: Annotated[int, typer.Option("--grpc", metavar="PORT", min=0, max=65535, help="For V2 over gRPC.")] = 8001
    metrics: Annotated[int, typer.Option("--metrics", metavar="PORT", min=0, max=65535, help="For metrics.")] = 8002
    address: Annotated[str, typer.Option("--address", metavar="ADDRESS", help="Local address to listen on.")] = (
        "127.0.0.1"
    )


@options.grouped
def connect(lease: options.LeaseArgument, ports: Ports, common: options.Common) -> None:
    """Lead local ports to a lease, through the server, until Ctrl-C: for clients outside of the workers' network.

    Example: tmsctl lease connect digits --http 8000
    """
    namespace = common.namespace or ""
    tunnel = late.tunnel
    with session.connect(common) as client:
        found = client.call(client.leases.Get, late.lease_pb2.GetLeaseRequest(lease=lease, namespace=namespace))
        if found.state != late.lease_pb2.LEASE_STATE_ACTIVE:
            message = f"{found.id} is {late.render.state(found)}"
            remedy = f"`tmsctl lease explain {found.id}` says why."
            raise errors.CliError(message, code=errors.Exit.PRECONDITION, field=lease, remedy=remedy)
        plan = tunnel.Plan(
            lease=lease,
            namespace=namespace,
            address=ports.address,
            ports={"http": ports.http, "grpc": ports.grpc, "metrics": ports.metrics},
            note=session.note,
        )
        opened = tunnel.Tunnels(client, plan)
        try:
            late.render.out(_said(opened.bound, ports.address, common.output))
            opened.wait()
        finally:
            opened.close()


def _said(bound: dict[str, int], address: str, output: options.Output) -> str:
    host = f"[{address}]" if ":" in address else address
    urls = {
        "http": f"http://{host}:{bound['http']}",
        "grpc": f"{host}:{bound['grpc']}",
        "metrics": f"http://{host}:{bound['metrics']}/metrics",
    }
    if output is options.Output.TABLE:
        return late.render.pairs([("HTTP", urls["http"]), ("gRPC", urls["grpc"]), ("Metrics", urls["metrics"])])
    if output is options.Output.NAME:
        return "\n".join(urls.values())
    return late.render.structured(urls, output)
