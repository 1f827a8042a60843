"""One client of load.py: HTTP/1.1 and server-sent events over a plain asyncio connection, and what it saw.

Written out because the client shares the machine with the server it measures: it parses what the protocol needs and no
more. One connection per request, so that a client that leaves really closes something.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

HOST = "127.0.0.1"
TIMEOUT = 180.0  # seconds for a whole request; longer is a failure
SUBJECTS = ("a fox", "the sea", "two brothers", "an old clock", "a lost key", "the winter", "a small boat", "my dog")
SENTENCE = "The little boat went up and down on the water, and the girl in it looked for her friend the bird. "


@dataclass
class Seen:
    """What all clients saw. `failures` are the server's; `expected` is what a client brought on itself."""

    ok: int = 0
    left: int = 0
    expected: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    """Seconds from sending the request to the first piece of text."""
    between: list[float] = field(default_factory=list)
    """Seconds from a piece of text to the next."""
    tokens: int = 0
    """In complete answers, as their usage says."""


@dataclass
class Plan:
    """A request. `wrong`: the status that it should get. `leave_after`: hang up after so many pieces of text."""

    body: bytes
    stream: bool = True
    wrong: int = 0
    leave_after: int | None = None


class Answer:
    """Status and body of one response."""

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: dict[str, str]) -> None:
        self.reader, self.status, self.headers = reader, status, headers

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. A body that ends too early is an IncompleteReadError."""
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
        elif length := int(self.headers.get("content-length", 0)):
            yield await self.reader.readexactly(length)

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def events(self) -> AsyncIterator[str]:
        """The data of each server-sent event."""
        rest = b""
        async for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n\n")
            for event in whole:
                for line in event.split(b"\n"):
                    if line.startswith(b"data: "):
                        yield line[6:].decode()


@contextlib.asynccontextmanager
async def request(port: int, method: str, path: str, body: bytes = b"") -> AsyncIterator[Answer]:
    """Send a request; the connection is cut when the block is left."""
    reader, writer = await asyncio.open_connection(HOST, port, limit=2**20)
    try:
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.split(":", 1) for line in head[1:] if line)
        headers = {name.strip().lower(): value.strip().lower() for name, value in fields}
        yield Answer(reader, int(head[0].split()[1]), headers)
    finally:
        writer.transport.abort()


async def metrics(port: int) -> dict[str, float]:
    """Every sample without labels of /metrics."""
    async with request(port, "GET", "/metrics") as answer:
        text = (await answer.body()).decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#" and "{" not in line)
    return {name: float(value) for name, value in pairs}


def draw(rng: random.Random, model: str) -> Plan:
    """What a client does next: 66 % ordinary, 8 % long prompts (that begin alike), 6 % not streamed, 12 % hang up,
    8 % wrong."""
    what = rng.random()
    asked: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "user", "content": f"Tell me a story about {rng.choice(SUBJECTS)}, number {rng.random()}."}
        ],
        "max_tokens": rng.randint(16, 200),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if what < 0.66:
        return Plan(_json(asked))
    if what < 0.74:
        asked["messages"][0]["content"] = SENTENCE * rng.randint(15, 30) + f"Number {rng.random()}."
        asked["max_tokens"] = rng.randint(8, 40)
        return Plan(_json(asked))
    if what < 0.80:
        del asked["stream"], asked["stream_options"]
        return Plan(_json(asked), stream=False)
    if what < 0.92:
        return Plan(_json(asked | {"ignore_eos": True}), leave_after=rng.choice((0, 0, 1, 5, 20)))
    return wrong(rng, asked)


def wrong(rng: random.Random, asked: dict[str, Any]) -> Plan:
    """A request that must be refused."""
    kind = rng.randrange(6)
    if kind == 0:
        return Plan(_json(asked)[:-9], wrong=400)
    if kind == 1:
        return Plan(_json(asked | {"temprature": 1}), wrong=400)
    if kind == 2:
        return Plan(_json(asked | {"max_tokens": -3}), wrong=400)
    if kind == 3:
        return Plan(_json(asked | {"model": "no-such-model"}), wrong=404)
    if kind == 4:
        return Plan(_json(asked | {"messages": [{"role": "user", "content": SENTENCE * 600}]}), wrong=400)
    return Plan(_json(asked | {"messages": "hello"}), wrong=400)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


async def perform(port: int, plan: Plan, seen: Seen) -> None:
    """One request. Whatever happens is counted."""
    try:
        async with asyncio.timeout(TIMEOUT):
            await _perform(port, plan, seen)
    except TimeoutError:
        seen.failures[f"no end within {TIMEOUT:.0f} s"] += 1
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        seen.failures[f"connection: {type(error).__name__}"] += 1
    except (ValueError, KeyError, IndexError) as error:
        seen.failures[f"not the protocol: {type(error).__name__}"] += 1


async def _perform(port: int, plan: Plan, seen: Seen) -> None:
    sent = perf_counter()
    async with request(port, "POST", "/v1/chat/completions", plan.body) as answer:
        if plan.wrong:
            body = await answer.body()
            if answer.status == plan.wrong and json.loads(body)["error"]["message"]:
                seen.expected[f"{answer.status} for a wrong request"] += 1
            else:
                seen.failures[f"{answer.status} for a request that deserves {plan.wrong}"] += 1
        elif answer.status == 429:
            seen.expected["429, the queue was full"] += 1
            await asyncio.sleep(min(5.0, float(answer.headers.get("retry-after", 1))))
        elif answer.status != 200:
            seen.failures[f"{answer.status} for a good request"] += 1
        elif not plan.stream:
            seen.tokens += json.loads(await answer.body())["usage"]["completion_tokens"]
            seen.ok += 1
        else:
            await _read_stream(answer, plan, seen, sent)


async def _read_stream(answer: Answer, plan: Plan, seen: Seen, sent: float) -> None:
    pieces, last, used = 0, sent, 0
    if plan.leave_after == 0:
        seen.left += 1
        return
    async for data in answer.events():
        if data == "[DONE]":
            seen.ok += 1
            seen.tokens += used
            return
        chunk = json.loads(data)
        if "error" in chunk:
            seen.failures["an error in a stream"] += 1
            return
        if chunk.get("usage"):
            used = chunk["usage"]["completion_tokens"]
        if any(choice["delta"].get("content") for choice in chunk["choices"]):
            now = perf_counter()
            (seen.between if pieces else seen.first).append(now - last)
            pieces, last = pieces + 1, now
            if pieces == plan.leave_after:
                seen.left += 1
                return
    seen.failures["a stream without [DONE]"] += 1
