"""The engine in a thread of its own, for asyncio callers such as the server.

The thread is the only one that touches the engine. Callers leave requests and aborts in an inbox; after each step the
thread hands all new deltas to the callers' event loops in one go. Closing an iterator aborts its request, so a client
that went away frees its pages within one step.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fathom.engine.engine import EngineStats
from fathom.engine.llm import LLM
from fathom.engine.outputs import Delta
from fathom.engine.params import SamplingParams
from fathom.engine.request import Request
from fathom.engine.sampling import derive_seed

log = logging.getLogger("fathom.engine")


class EngineBusy(Exception):
    """The waiting queue is full, or the engine takes no more requests."""

    def __init__(self, message: str, retry_after: float, *, draining: bool = False) -> None:
        super().__init__(message)
        self.retry_after, self.draining = retry_after, draining


class EngineFailure(Exception):
    """The engine failed while the request was running."""


@dataclass
class _Caller:
    """Where the deltas of one request go."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Delta | Exception]


class DeltaStream(AsyncIterator[Delta]):
    """The deltas of one request. Closing it, cancelling a wait for the next delta, or dropping it ends the request."""

    def __init__(self, service: EngineService, key: str, queue: asyncio.Queue[Delta | Exception]) -> None:
        self._service, self._key, self._queue = service, key, queue
        self._ended = False

    async def __anext__(self) -> Delta:
        if self._ended:
            raise StopAsyncIteration
        try:
            got = await self._queue.get()
        except BaseException:
            await self.aclose()
            raise
        if isinstance(got, Exception):
            await self.aclose()
            raise got
        if got.metrics is not None:
            await self.aclose()
        return got

    async def aclose(self) -> None:
        """No more deltas are wanted."""
        self._ended = True
        self._service.leave(self._key)

    def __del__(self) -> None:
        self._service.leave(self._key)


class EngineService:
    """`max_waiting`: requests that may wait for their first step; one more is refused with EngineBusy."""

    def __init__(self, llm: LLM, *, max_waiting: int = 256) -> None:
        self.llm, self.max_waiting = llm, max_waiting
        self._inbox: deque[Request | str] = deque()  # a request to add, or the id of one to abort
        self._wake = threading.Condition()
        self._callers: dict[str, _Caller] = {}
        self._started: set[str] = set()
        self._thread: threading.Thread | None = None
        self._stopping = self._draining = False
        self._numbers = itertools.count()
        self._stats = llm.engine.stats()

    # ---- for callers -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, name="fathom-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        thinking_open: bool = False,
        continues: bool = False,
    ) -> DeltaStream:
        """Deltas of the answer as they come. UserError or EngineBusy at once if there will be none.

        `continues`: part of an answer that is running, which finishes while the service drains, however many wait.
        """
        if self._stopping or (self._draining and not continues):
            raise EngineBusy("the server is shutting down; try another one", 5.0, draining=True)
        waiting = sum(key not in self._started for key in list(self._callers))
        if waiting >= self.max_waiting and not continues:
            raise EngineBusy(
                f"{waiting} requests are waiting, the limit is {self.max_waiting}; try again later", self._retry_after()
            )
        self.llm.engine.check(prompt, params)
        if params.grammar is not None:
            self.llm.engine.compiler.matcher(params.grammar)
        number = next(self._numbers)
        key, seed = f"{request_id}#{number}", derive_seed(self.llm.seed, number)
        request = Request(key, prompt, params, seed, priority, thinking_open, reproducible=params.seed is not None)
        caller = _Caller(asyncio.get_running_loop(), asyncio.Queue())
        self._callers[key] = caller
        self._post(request)
        return DeltaStream(self, key, caller.queue)

    def stats(self) -> EngineStats:
        """As of the last step."""
        return self._stats

    async def drain(self, timeout: float) -> bool:
        """Take no new requests, wait for the running ones; False if some still run after `timeout` seconds."""
        self._draining = True
        end = asyncio.get_running_loop().time() + timeout
        while self._callers and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        return not self._callers

    def stop(self) -> None:
        """Abort what is left and end the thread."""
        self._stopping = True
        with self._wake:
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def leave(self, key: str) -> None:
        """The caller of a request takes no more deltas: drop it if it still runs. Any thread may call this."""
        if self._callers.pop(key, None) is not None:
            self._started.discard(key)
            self._post(key)

    def _retry_after(self) -> float:
        """About the time in which the queue moves on by one round of running requests."""
        stats = self._stats
        return max(1.0, min(60.0, stats.waiting / max(stats.running, 1)))

    def _post(self, message: Request | str) -> None:
        with self._wake:
            self._inbox.append(message)
            self._wake.notify()

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        engine = self.llm.engine
        while not self._stopping:
            with self._wake:
                while not self._inbox and not engine.has_work and not self._stopping:
                    self._wake.wait()
                messages = list(self._inbox)
                self._inbox.clear()
            for message in messages:
                self._take(message)
            if engine.has_work:
                self._step()
            self._stats = engine.stats()
        for key in list(self._callers):
            engine.abort(key)
            self._tell(key, EngineFailure("the server was stopped before the answer was complete"))
        self._stats = engine.stats()

    def _take(self, message: Request | str) -> None:
        if isinstance(message, str):
            self.llm.engine.abort(message)
            return
        if message.id not in self._callers:  # gone before it began
            return
        try:
            self.llm.engine.add(message)
        except Exception as error:
            self._tell(message.id, error)

    def _step(self) -> None:
        try:
            new = self.llm.engine.step()
        except Exception as error:
            log.exception("a step failed; the running requests are dropped")
            for key in self.llm.engine.lost:
                self._tell(key, EngineFailure(f"the engine failed: {error}"))
            return
        for key, failure in self.llm.engine.failed.items():
            self._tell(key, failure)
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Caller, Delta]]] = {}
        for key, delta in new:
            caller = self._callers.get(key)
            if caller is not None:
                self._started.add(key)
                by_loop.setdefault(caller.loop, []).append((caller, delta))
        for loop, items in by_loop.items():
            _call(loop, _deliver, items)

    def _tell(self, key: str, error: Exception) -> None:
        caller = self._callers.get(key)
        if caller is not None:
            _call(caller.loop, caller.queue.put_nowait, error)


def _deliver(items: list[tuple[_Caller, Delta]]) -> None:
    for caller, delta in items:
        caller.queue.put_nowait(delta)


def _call(loop: asyncio.AbstractEventLoop, function: object, argument: object) -> None:
    try:
        loop.call_soon_threadsafe(function, argument)  # type: ignore[arg-type]
    except RuntimeError:
        log.debug("an event loop closed before its answers came")
