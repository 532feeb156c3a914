"""Pools, workers and sidecars on the wire: each method converts, calls one use case, converts back."""

# ruff: noqa: N802 - the wire names the methods

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog

from protos.tms.v1 import agent_pb2, agent_pb2_grpc, pool_pb2, pool_pb2_grpc
from tms_server.api import callers, convert_fleet, fields
from tms_server.model import errors, ids
from tms_server.services import agents, images, pools, workers

log = structlog.get_logger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]
WORKER_ID = "tms-worker-id"
REPLICA_ID = "tms-replica-id"
AUTHORIZATION = "authorization"
BEARER = "Bearer "


class PoolsServicer(pool_pb2_grpc.PoolsServicer):
    """Service tms.v1.Pools."""

    def __init__(self, use_cases: pools.Pools) -> None:
        self._pools = use_cases

    async def Create(self, request: pool_pb2.CreatePoolRequest, context: Context) -> pool_pb2.Pool:
        namespace, name = fields.namespace(request.namespace), ids.PoolName(request.name)
        spec = convert_fleet.pool_spec(request.spec)
        return convert_fleet.pool_message(await self._pools.create(callers.of(context), namespace, name, spec))

    async def Get(self, request: pool_pb2.GetPoolRequest, context: Context) -> pool_pb2.Pool:
        namespace, name = fields.namespace(request.namespace), ids.PoolName(request.name)
        return convert_fleet.pool_message(await self._pools.get(callers.of(context), namespace, name))

    async def List(self, request: pool_pb2.ListPoolsRequest, context: Context) -> pool_pb2.ListPoolsResponse:
        found = await self._pools.list(callers.of(context), fields.namespace(request.namespace))
        return pool_pb2.ListPoolsResponse(pools=map(convert_fleet.pool_message, found))

    async def Delete(self, request: pool_pb2.DeletePoolRequest, context: Context) -> pool_pb2.DeletePoolResponse:
        namespace, name = fields.namespace(request.namespace), ids.PoolName(request.name)
        await self._pools.delete(callers.of(context), namespace, name, revoke_leases=request.revoke_leases)
        return pool_pb2.DeletePoolResponse()

    async def Update(self, request: pool_pb2.UpdatePoolRequest, context: Context) -> pool_pb2.Pool:
        namespace, name = fields.namespace(request.namespace), ids.PoolName(request.name)
        spec = convert_fleet.pool_spec(request.spec)
        return convert_fleet.pool_message(await self._pools.update(callers.of(context), namespace, name, spec))


class ImagesServicer(pool_pb2_grpc.ImagesServicer):
    """Service tms.v1.Images."""

    def __init__(self, use_cases: images.Images) -> None:
        self._images = use_cases

    async def Allow(self, request: pool_pb2.AllowImageRequest, context: Context) -> pool_pb2.ImageRule:
        return convert_fleet.image_rule_message(await self._images.allow(callers.of(context), request.pattern))

    async def List(self, request: pool_pb2.ListImageRulesRequest, context: Context) -> pool_pb2.ListImageRulesResponse:
        del request
        found = await self._images.list(callers.of(context))
        return pool_pb2.ListImageRulesResponse(rules=map(convert_fleet.image_rule_message, found))

    async def Forbid(self, request: pool_pb2.ForbidImageRequest, context: Context) -> pool_pb2.ForbidImageResponse:
        await self._images.forbid(callers.of(context), request.pattern)
        return pool_pb2.ForbidImageResponse()


class WorkersServicer(pool_pb2_grpc.WorkersServicer):
    """Service tms.v1.Workers."""

    def __init__(self, use_cases: workers.Workers) -> None:
        self._workers = use_cases

    async def List(self, request: pool_pb2.ListWorkersRequest, context: Context) -> pool_pb2.ListWorkersResponse:
        namespace = fields.namespace(request.namespace)
        found = await self._workers.list(callers.of(context), namespace, request.pool)
        return pool_pb2.ListWorkersResponse(workers=map(convert_fleet.worker_message, found))


class AgentsServicer(agent_pb2_grpc.AgentsServicer):
    """Service tms.v1.Agents."""

    def __init__(self, hub: agents.Agents) -> None:
        self._hub = hub

    async def Connect(
        self, request_iterator: AsyncIterator[agent_pb2.AgentMessage], context: Context
    ) -> AsyncIterator[agent_pb2.ServerMessage]:
        token = callers.metadata(context, AUTHORIZATION)
        if not token.startswith(BEARER):
            raise errors.Unauthenticated(f"send the metadata {AUTHORIZATION}: {BEARER}<token of the worker>")
        worker, replica = callers.metadata(context, WORKER_ID), callers.metadata(context, REPLICA_ID)
        session = await self._hub.connect(worker, replica, token.removeprefix(BEARER))
        listening = asyncio.create_task(self._listen(session, request_iterator))
        try:
            async for state in session.desired():
                yield convert_fleet.desired_message(state)
        finally:
            listening.cancel()
            self._hub.disconnect(session)

    async def _listen(self, session: agents.Session, said: AsyncIterator[agent_pb2.AgentMessage]) -> None:
        """Takes what the sidecar says; whatever ends that ends the session."""
        try:
            async for message in said:
                self._take(session, message)
            session.close(errors.Unavailable("the sidecar has closed the stream"))
        except errors.TmsError as error:
            session.close(error)
        except Exception as error:
            log.warning("sidecar.stream_broke", group=session.worker.group_id, exc_info=error)
            session.close(errors.Unavailable("the stream broke"))

    def _take(self, session: agents.Session, message: agent_pb2.AgentMessage) -> None:
        match message.WhichOneof("message"):
            case "hello":
                session.incarnation = message.hello.incarnation
            case "report" if not session.incarnation:
                raise errors.InvalidField("report", "say hello first")
            case "report":
                self._hub.report(session, convert_fleet.report(message.report, session, self._hub.now()))
