"""Run the app in uvicorn, and end it well.

    first SIGTERM or SIGINT    new requests and /health get 503, running answers finish (at most drain_seconds), exit 0
    second                     everything ends at once, exit 128 + signal
    port in use                a UserError, before the weights are read

uvicorn alone would close its sockets at the first signal, and clients could not tell an ending server from a dead one.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from fathom.runtime import UserError
from fathom.server.served import Served
from fathom.server.settings import Settings

BACKLOG = 2048
LAST_BYTES_SECONDS = 5  # for connections to take the rest of their answers once the engine is done
IDLE_SECONDS = 30  # a connection without a whole head of a request is closed
SPARE_FILES = 128  # descriptors that connections may not take: a connection above that is closed at once


def bind(host: str, port: int) -> socket.socket:
    """A socket with an address, not yet listening: until the model is loaded clients are refused, not left waiting.
    Port 0 picks a free one."""
    if not 0 <= port < 65536:  # the system would wrap it around
        raise UserError(f"--port is {port}; ports are 1 to 65535, or 0 for a free one")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise UserError(f"--host {host!r} --port {port} is no address to listen at; give an IP or a name") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from None
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> UserError:
    return UserError(f"cannot listen at {host} port {port}: {error.strerror}; give another --port")


def serve(app: FastAPI, settings: Settings, listener: socket.socket, *, on_ready: Callable[[], None]) -> int:
    """Serve until told to end. The exit code. `on_ready` is called once requests are answered."""
    logging.basicConfig(level=logging.WARNING, format="fathom: %(levelname)s: %(message)s", stream=sys.stderr)
    config = uvicorn.Config(
        app,
        http=Connection,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=LAST_BYTES_SECONDS,
    )
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another process was quicker
        raise _cannot_listen(settings.host, settings.port, error) from None
    server = _Server(config, app.state.served, settings.drain_seconds, on_ready)
    server.run(sockets=[listener])
    return server.exit_code


def most_connections() -> int:
    """How many this process may have open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(files - SPARE_FILES, files // 2)


class Connection(H11Protocol):
    """uvicorn's own takes any number, and waits without end for a first head and for one that has begun to come."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.abort()
        else:
            self._wait_for_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head is not None:
            self._head.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
        self._head = self.loop.call_later(IDLE_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn closes its sockets when a signal comes; this one first answers 503 while the engine drains."""

    def __init__(
        self, config: uvicorn.Config, served: Served, drain_seconds: float, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.served, self.drain_seconds, self.on_ready = served, drain_seconds, on_ready
        self.exit_code = 0
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal. It comes between two instructions of the loop's thread, so the work is left to the loop."""
        if self.served.state.draining or self._loop is None:
            self.exit_code = 128 + sig
            self.should_exit = self.force_exit = True
            return
        self.served.state.draining = True
        self._loop.call_soon_threadsafe(self._start_drain, signal.Signals(sig).name)

    def _start_drain(self, name: str) -> None:
        running = self.served.service.stats().running
        print(
            f"fathom: {name}: no new requests; {running} running answers have {self.drain_seconds:g} s "
            "(a second signal ends at once)",
            file=sys.stderr,
            flush=True,
        )
        self._drain = asyncio.create_task(self._finish())

    async def _finish(self) -> None:
        if not await self.served.service.drain(self.drain_seconds):
            print("fathom: the time is up; the answers that are left are cut off", file=sys.stderr, flush=True)
            await asyncio.to_thread(self.served.service.stop)
        self.should_exit = True
