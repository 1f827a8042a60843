"""Many clients against `fathom serve`, for minutes; then SIGTERM while they wait for answers.

    python benchmarks/load.py [--clients 64] [--seconds 300] [--quick] [MODEL]

Each client sends one request after the other (load_client.py): most are streamed chats, some have long prompts, some
are not streamed, some hang up in the middle or before the first token, some are wrong and must be refused. At the end:

    failures     answers that were cut, late or not the protocol; 5xx; wrong requests that were accepted. Must be none
    latency      to the first text and between texts, as the clients saw them, in seconds
    memory       resident set of the server, median of the first and of the last quarter of the time; the first tenth,
                 in which buffers grow to the size of the load, does not count
    leaks        tokens in pages and requests that /metrics still counts once every client has ended. Must be none
    SIGTERM      sent while every client has an answer running: all must end with [DONE], new requests must be refused,
                 the exit code must be 0

The server runs on a free port of the loopback address. The last line is one JSON document; progress goes to standard
error. The exit code is 1 if something that must be is not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from load_client import HOST, Plan, Seen, draw, metrics, perform, request

READY_SECONDS, END_SECONDS, DRAIN_SECONDS = 180.0, 15.0, 120
FLAT = 1.05  # memory of the last quarter over that of the first
LAST_TOKENS = 150  # of the answers that SIGTERM meets
ACTIVE = ("fathom_requests_running", "fathom_requests_waiting", "fathom_cache_tokens_used")


def say(text: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@dataclass
class Server:
    """`fathom serve` in a process of its own, and what it prints."""

    process: asyncio.subprocess.Process
    port: int = 0
    lines: list[str] = field(default_factory=list)

    @classmethod
    async def start(cls, model: str) -> Server:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fathom", "serve", model, "--host", HOST, "--port", "0", "--quiet",
            "--drain-seconds", str(DRAIN_SECONDS), stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        server = cls(process)
        async with asyncio.timeout(READY_SECONDS):
            while not server.port and (line := await server.read_line()):
                if found := re.search(rf"http://{HOST}:(\d+)/v1", line):
                    server.port = int(found[1])
        if not server.port:
            sys.exit(f"the server ended with code {await process.wait()}: " + " ".join(server.lines[-3:]))
        return server

    async def read_line(self) -> str:
        assert self.process.stderr is not None
        line = (await self.process.stderr.readline()).decode(errors="replace")
        self.lines = [*self.lines[-50:], line.strip()] if line else self.lines
        return line

    async def drain_output(self) -> None:
        """Until it ends."""
        while await self.read_line():
            pass

    def resident(self) -> int:
        """Bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", text)
        return int(found[1]) * 1024 if found else 0


async def client(number: int, port: int, model: str, seed: int, until: float, seen: Seen) -> None:
    """Requests until the time is up; the last one is finished."""
    rng = random.Random(seed * 1_000_003 + number)
    while time.monotonic() < until:
        await perform(port, draw(rng, model), seen)


async def watch(server: Server, until: float, seconds: float) -> tuple[list[int], dict[str, float]]:
    """Memory once a second, and the peaks of /metrics."""
    memory, peaks, started = list[int](), dict.fromkeys(ACTIVE, 0.0), time.monotonic()
    while time.monotonic() < until:
        memory.append(server.resident())
        now = await metrics(server.port)
        peaks = {name: max(peak, now[name]) for name, peak in peaks.items()}
        if len(memory) % 15 == 0:
            say(f"{time.monotonic() - started:.0f} of {seconds:.0f} s: {now[ACTIVE[0]]:.0f} running, "
                f"{now[ACTIVE[1]]:.0f} waiting, {now[ACTIVE[2]]:.0f} tokens in pages, "
                f"{memory[-1] / 2**20:.0f} MiB")  # fmt: skip
        await asyncio.sleep(1)
    return memory, peaks


async def leaks(port: int) -> dict[str, float]:
    """What is still in use once nobody asks for anything."""
    end = time.monotonic() + END_SECONDS
    while True:
        now = await metrics(port)
        left = {name: now[name] for name in ACTIVE}
        if not any(left.values()) or time.monotonic() > end:
            return left
        await asyncio.sleep(0.2)


async def terminate(server: Server, model: str, clients: int) -> dict[str, Any]:
    """SIGTERM while every client has an answer running."""
    seen, port = Seen(), server.port
    asked = {
        "model": model, "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": LAST_TOKENS,
        "stream": True, "ignore_eos": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    plan = Plan(json.dumps(asked).encode())
    tasks = [asyncio.create_task(perform(port, plan, seen)) for _ in range(clients)]
    while len(seen.first) < clients and not all(task.done() for task in tasks):
        await asyncio.sleep(0.02)
    cut_off = sum(not task.done() for task in tasks)
    server.process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    await asyncio.sleep(0.1)  # for the signal to arrive
    probes = Counter[str]()
    while not all(task.done() for task in tasks):
        probes[await probe(port, plan)] += 1
        await asyncio.sleep(0.2)
    await asyncio.gather(*tasks)
    try:
        code = await asyncio.wait_for(server.process.wait(), DRAIN_SECONDS)
    except TimeoutError:
        seen.failures["the server did not end"] += 1
        code = -1
    probes[await probe(port, plan)] += 1
    return {
        "running": cut_off, "clients": clients, "completed": seen.ok, "failures": dict(seen.failures),
        "new_requests": dict(probes), "exit_code": code, "seconds": round(time.monotonic() - sent, 2),
    }  # fmt: skip


async def probe(port: int, plan: Plan) -> str:
    """What a new request meets."""
    try:
        async with asyncio.timeout(10), request(port, "POST", "/v1/chat/completions", plan.body) as answer:
            return f"status {answer.status}"
    except ConnectionError:
        return "connection refused"
    except (asyncio.IncompleteReadError, TimeoutError) as error:
        return type(error).__name__


def spread(values: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    if len(values) < 2:
        return {"p50": 0.0, "p99": 0.0}
    cuts = quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 4), "p99": round(cuts[98], 4)}


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All phases."""
    server = await Server.start(args.model)
    output = asyncio.create_task(server.drain_output())
    say(f"serving at port {server.port}; {args.clients} clients for {args.seconds} s")
    try:
        async with request(server.port, "GET", "/v1/models") as answer:
            model = json.loads(await answer.body())["data"][0]["id"]
        seen, before = Seen(), await metrics(server.port)
        started, cpu = time.monotonic(), time.process_time()
        until = started + args.seconds
        watching = asyncio.create_task(watch(server, until, args.seconds))
        await asyncio.gather(
            *(client(i, server.port, model, args.seed, until, seen) for i in range(args.clients))
        )  # fmt: skip
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        memory, peaks = await watching
        left, after = await leaks(server.port), await metrics(server.port)
        say("every client has ended; SIGTERM next")
        end = await terminate(server, model, args.clients)
    finally:
        if server.process.returncode is None:
            server.process.kill()
        await server.process.wait()
        await output
    count = {name.removesuffix("_total"): after[name] - before[name] for name in after if name.endswith("_total")}
    return report(args, seen, memory, peaks, left, count, end, seconds, cpu)


def report(
    args: argparse.Namespace, seen: Seen, memory: list[int], peaks: dict[str, float], left: dict[str, float],
    count: dict[str, float], end: dict[str, Any], seconds: float, cpu: float,
) -> dict[str, Any]:  # fmt: skip
    settled = memory[len(memory) // 10 :]
    quarter = max(len(settled) // 4, 1)
    first, last = median(settled[:quarter]), median(settled[-quarter:])
    refused = all(word.startswith(("status 503", "connection")) for word in end["new_requests"])
    good = {
        "no_failures": not seen.failures,
        "memory_flat": last <= FLAT * first,
        "nothing_leaked": not any(left.values()),
        "sigterm_completes_answers": end["completed"] == end["clients"] and not end["failures"],
        "sigterm_refuses_new": refused,
        "exit_code_0": end["exit_code"] == 0,
    }
    requests = seen.ok + seen.left + seen.expected.total() + seen.failures.total()
    return {
        "benchmark": "load", "model": args.model, "clients": args.clients, "seconds": round(seconds, 1),
        "good": all(good.values()), "checks": good, "requests": requests, "complete": seen.ok, "hung_up": seen.left,
        "expected_errors": dict(seen.expected), "failures": dict(seen.failures),
        "tokens_per_second": round(count["fathom_generated_tokens"] / seconds, 1),
        "prompt_tokens_per_second": round(count["fathom_prompt_tokens"] / seconds, 1),
        "first_text_seconds": spread(seen.first), "between_texts_seconds": spread(seen.between),
        "memory_bytes": {"first_quarter": int(first), "last_quarter": int(last), "peak": max(memory)},
        "peaks": peaks, "left_over": left, "counters": count, "sigterm": end,
        "client_cpu_share": round(cpu / seconds, 3),
    }  # fmt: skip


def print_table(found: dict[str, Any]) -> None:
    first, between, memory = found["first_text_seconds"], found["between_texts_seconds"], found["memory_bytes"]
    end = found["sigterm"]
    rows = {
        "requests": f"{found['requests']} by {found['clients']} clients in {found['seconds']:.0f} s",
        "complete": str(found["complete"]),
        "clients hung up": str(found["hung_up"]),
        "clients' errors": ", ".join(f"{n} x {what}" for what, n in found["expected_errors"].items()) or "none",
        "failures": ", ".join(f"{n} x {what}" for what, n in found["failures"].items()) or "none",
        "throughput": f"{found['tokens_per_second']:.0f} tokens/s, {found['prompt_tokens_per_second']:.0f} of prompts",
        "first text": f"{first['p50'] * 1e3:.0f} ms median, {first['p99'] * 1e3:.0f} ms 99th percentile",
        "between texts": f"{between['p50'] * 1e3:.1f} ms median, {between['p99'] * 1e3:.1f} ms 99th percentile",
        "memory": f"{memory['first_quarter'] / 2**20:.0f} MiB early, {memory['last_quarter'] / 2**20:.0f} MiB late, "
                  f"peak {memory['peak'] / 2**20:.0f}",
        "left over": ", ".join(f"{name.removeprefix('fathom_')} {n:.0f}" for name, n in found["left_over"].items()),
        "SIGTERM": f"{end['completed']} of {end['clients']} answers completed ({end['running']} were running); new "
                   f"requests: {end['new_requests']}; exit code {end['exit_code']} after {end['seconds']} s",
        "client's CPU": f"{100 * found['client_cpu_share']:.0f} % of one core",
        "checks": ", ".join(f"{name} {'yes' if ok else 'NO'}" for name, ok in found["checks"].items()),
    }  # fmt: skip
    print()
    for name, text in rows.items():
        print(f"{name:<16}{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="minnow", help="a folder or the bundled model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of what the clients do")
    parser.add_argument("--quick", action="store_true", help="16 clients, 20 seconds")
    args = parser.parse_args()
    if args.quick:
        args.clients, args.seconds = 16, 20.0
    if args.clients < 1 or args.seconds < 5:
        parser.error("--clients must be at least 1 and --seconds at least 5")
    found = asyncio.run(measure(args))
    print_table(found)
    print(json.dumps(found))
    sys.exit(not found["good"])


if __name__ == "__main__":
    main()
