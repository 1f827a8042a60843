"""Several streams as one, in the order in which their items come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

from fathom.server.sse import close

T = TypeVar("T")


async def merge(streams: Sequence[AsyncIterator[T]]) -> AsyncIterator[tuple[int, T]]:
    """(number of the stream, item). Closing it closes them all, as does an error in one of them."""
    waiting: dict[asyncio.Future[T], int] = {}
    try:
        waiting = {asyncio.ensure_future(_next(stream)): number for number, stream in enumerate(streams)}
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                number = waiting.pop(task)
                try:
                    item = task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(_next(streams[number]))] = number
                yield number, item
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await close(stream)


async def _next(stream: AsyncIterator[T]) -> T:
    return await anext(stream)
