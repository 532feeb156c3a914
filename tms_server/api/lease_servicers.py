"""Leases and their names on the wire: each method converts, calls one use case, converts back."""

# ruff: noqa: N802 - the wire names the methods

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog

from protos.tms.v1 import lease_pb2, lease_pb2_grpc
from tms_server.api import callers, convert, fields, pipeline
from tms_server.model import errors, ids
from tms_server.services import create, leases, names, tunnels, watch

Context = grpc.aio.ServicerContext[Any, Any]
OPENING_S = 10.0
log = structlog.get_logger(__name__)
AT_ONCE = 64
"""Requests of one KeepAlive stream that are in work together: they share commits, and their answers keep their order."""


class LeasesServicer(lease_pb2_grpc.LeasesServicer):
    """Service tms.v1.Leases."""

    def __init__(
        self,
        creator: create.Creator,
        existing: leases.Leases,
        watcher: watch.Watcher,
        tunnels_: tunnels.Tunnels,
    ) -> None:
        self._creator = creator
        self._tunnels = tunnels_
        self._leases = existing
        self._watcher = watcher

    async def Create(self, request: lease_pb2.CreateLeaseRequest, context: Context) -> lease_pb2.Lease:
        asked = convert.create_lease(request, self._creator.times)
        return convert.lease_message(await self._creator.create(callers.of(context), asked))

    async def Acquire(
        self, request: lease_pb2.CreateLeaseRequest, context: Context
    ) -> AsyncIterator[lease_pb2.LeaseUpdate]:
        asked = convert.create_lease(request, self._creator.times)
        async for update in self._watcher.acquire(callers.of(context), asked):
            yield convert.update(update)

    async def Get(self, request: lease_pb2.GetLeaseRequest, context: Context) -> lease_pb2.Lease:
        namespace = fields.namespace(request.namespace)
        return convert.lease_message(await self._leases.get(callers.of(context), namespace, request.lease))

    async def List(self, request: lease_pb2.ListLeasesRequest, context: Context) -> lease_pb2.ListLeasesResponse:
        page = await self._leases.list(callers.of(context), convert.list_leases(request))
        return lease_pb2.ListLeasesResponse(
            leases=map(convert.lease_message, page.leases), next_page_token=page.next_token, revision=page.revision
        )

    async def Watch(
        self, request: lease_pb2.WatchLeasesRequest, context: Context
    ) -> AsyncIterator[lease_pb2.LeaseUpdate]:
        namespace = fields.namespace(request.namespace)
        watched = self._watcher.watch(callers.of(context), namespace, tuple(request.leases), request.after_revision)
        async for update in watched:
            yield convert.update(update)

    async def Renew(self, request: lease_pb2.RenewLeaseRequest, context: Context) -> lease_pb2.RenewLeaseResponse:
        duration = fields.span("duration", request.duration) if request.HasField("duration") else None
        view = await self._leases.renew(
            callers.of(context),
            fields.namespace(request.namespace),
            request.lease,
            duration,
            allow_shorten=request.allow_shorten,
        )
        return lease_pb2.RenewLeaseResponse(expires=convert.deadline(view), lease=convert.lease_message(view))

    async def Release(self, request: lease_pb2.ReleaseLeaseRequest, context: Context) -> lease_pb2.Lease:
        namespace = fields.namespace(request.namespace)
        view = await self._leases.release(callers.of(context), namespace, request.lease, request.message)
        return convert.lease_message(view)

    async def KeepAlive(
        self, request_iterator: AsyncIterator[lease_pb2.KeepAliveRequest], context: Context
    ) -> AsyncIterator[lease_pb2.KeepAliveResponse]:
        answering = pipeline.in_order(request_iterator, lambda request: self._keep_alive(request, context), AT_ONCE)
        async with contextlib.aclosing(answering) as answers:
            async for answer in answers:
                yield answer

    async def Explain(self, request: lease_pb2.ExplainLeaseRequest, context: Context) -> lease_pb2.ExplainLeaseResponse:
        namespace = fields.namespace(request.namespace)
        return convert.explanation(await self._leases.explain(callers.of(context), namespace, request.lease))

    async def ListEvents(self, request: lease_pb2.ListEventsRequest, context: Context) -> lease_pb2.ListEventsResponse:
        namespace = fields.namespace(request.namespace)
        found = await self._leases.events(callers.of(context), namespace, request.lease)
        return lease_pb2.ListEventsResponse(events=map(convert.event, found))

    async def Logs(self, request: lease_pb2.LeaseLogsRequest, context: Context) -> AsyncIterator[lease_pb2.LogLine]:
        namespace = fields.namespace(request.namespace)
        lines = self._leases.logs(callers.of(context), namespace, request.lease, request.tail, follow=request.follow)
        async for line in lines:
            yield lease_pb2.LogLine(worker=line.group_id, source=line.source, text=line.text, replica=line.replica)

    async def Tunnel(
        self, request_iterator: AsyncIterator[lease_pb2.TunnelRequest], context: Context
    ) -> AsyncIterator[lease_pb2.TunnelData]:
        asked = await _opening(request_iterator)
        namespace, port = fields.namespace(asked.namespace), convert.tunnel_port(asked.port)
        async with self._tunnels.open(callers.of(context), namespace, asked.lease, port) as tunnel:
            sending = asyncio.create_task(_send(tunnel, request_iterator))
            try:
                while data := await tunnel.receive():
                    with tunnel.giving():
                        yield lease_pb2.TunnelData(data=data)
            finally:
                sending.cancel()
                await asyncio.wait([sending])

    async def _keep_alive(self, request: lease_pb2.KeepAliveRequest, context: Context) -> lease_pb2.KeepAliveResponse:
        """One bad lease must not end the stream for the others."""
        namespace = fields.namespace(request.namespace)
        try:
            view = await self._leases.keep_alive(callers.of(context), namespace, request.lease)
        except errors.TmsError as error:
            return lease_pb2.KeepAliveResponse(lease=request.lease, error=str(error))
        ended = not view.lease.state.living
        return lease_pb2.KeepAliveResponse(
            lease=request.lease,
            state=convert.STATES[view.lease.state],
            expires=convert.deadline(view),
            error=f"the lease is {view.lease.state}" if ended else "",
        )


async def _opening(said: AsyncIterator[lease_pb2.TunnelRequest]) -> lease_pb2.TunnelOpen:
    """The first message, which must come soon and open the tunnel."""
    try:
        async with asyncio.timeout(OPENING_S):
            first = await anext(said, None)
    except TimeoutError:
        first = None
    if first is None or first.WhichOneof("message") != "open":
        raise errors.InvalidField("open", "send the message that opens the tunnel first")
    return first.open


async def _send(tunnel: tunnels.Tunnel, said: AsyncIterator[lease_pb2.TunnelRequest]) -> None:
    """Passes on what the client sends; whatever keeps that from going on ends the tunnel."""
    try:
        async for message in said:
            await tunnel.send(_data(message))
        tunnel.finish()
    except errors.TmsError as failure:
        tunnel.fail(failure)
    except Exception as failure:
        log.debug("tunnel.client_broke", exc_info=failure)
        tunnel.fail(errors.Unavailable("the client's stream broke"))


def _data(message: lease_pb2.TunnelRequest) -> bytes:
    if message.WhichOneof("message") != "data":
        raise errors.InvalidField("data", "send nothing but data once the tunnel is open")
    return message.data.data


class LeaseNamesServicer(lease_pb2_grpc.LeaseNamesServicer):
    """Service tms.v1.LeaseNames."""

    def __init__(self, use_cases: names.Names) -> None:
        self._names = use_cases

    async def Set(self, request: lease_pb2.SetLeaseNameRequest, context: Context) -> lease_pb2.LeaseName:
        namespace = fields.namespace(request.namespace)
        lease_id, name = ids.LeaseId(request.lease_id), ids.LeaseName(request.name)
        return convert.name(await self._names.set(callers.of(context), namespace, name, lease_id))

    async def List(
        self, request: lease_pb2.ListLeaseNamesRequest, context: Context
    ) -> lease_pb2.ListLeaseNamesResponse:
        found = await self._names.list(callers.of(context), fields.namespace(request.namespace))
        return lease_pb2.ListLeaseNamesResponse(names=map(convert.name, found))

    async def Delete(
        self, request: lease_pb2.DeleteLeaseNameRequest, context: Context
    ) -> lease_pb2.DeleteLeaseNameResponse:
        namespace = fields.namespace(request.namespace)
        await self._names.delete(callers.of(context), namespace, ids.LeaseName(request.name))
        return lease_pb2.DeleteLeaseNameResponse()
