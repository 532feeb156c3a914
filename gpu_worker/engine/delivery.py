"""The way back: answers go in lists to the event loop that their requests came from.

A reply that raises harms no other; a loop that is gone loses its answers and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from gpu_worker.engine import border, work

Answer = border.InferResponse | border.InferenceError
Answered = tuple[border.Reply, Answer]

log = structlog.get_logger(__name__)


def post(answers: Sequence[tuple[work.Work, Answer]], here: asyncio.AbstractEventLoop | None = None) -> None:
    """Hands the answers over from any thread, in one call to each loop; at once on the loop `here` that it runs on."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Answered]] = {}
    for answered, answer in answers:
        by_loop.setdefault(answered.loop, []).append((answered.request.reply, answer))
    for loop, batch in by_loop.items():
        if loop is here:
            deliver(batch)
            continue
        try:
            loop.call_soon_threadsafe(deliver, batch)
        except RuntimeError:
            log.info("answers.dropped", count=len(batch), reason="event loop closed")


def tell(reply: border.Reply, answer: Answer) -> None:
    """One response of several, on the event loop of its request."""
    try:
        reply(answer, final=False)
    except Exception:
        log.exception("reply.failed")


def deliver(answers: Sequence[Answered]) -> None:
    """Calls each reply; runs on the event loop of the requests."""
    for reply, answer in answers:
        try:
            reply(answer)
        except Exception:
            log.exception("reply.failed")
