"""A stand-in for the API, to test the chat page without an engine.

It serves the page with the real server's Content-Security-Policy and answers /v1/chat/completions by a script: the last
user message names the answer. What the page sent is kept in `requests`, so a test can look at the wire.

    plain         "Answer N." (N counts requests, so that two answers differ)      echo TEXT   TEXT, as Markdown
    slow          a word every 30 ms, 400 words                                    think       reasoning, then content
    inside        needs inside: true; 40 tokens, every third one from a draft      full        ends at the context limit
    error CODE    an HTTP error of that status                                     cut         closes in the middle
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "fathom" / "server" / "page"
CSP = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
ERRORS = {
    400: ("temperature is 9.0; it must be between 0 and 2", {}),
    413: ("the body is larger than 8 MB", {}),
    429: ("the waiting queue is full (64 requests)", {"Retry-After": "30"}),
    500: ("the engine failed", {}),
    503: ("the server is shutting down", {"Retry-After": "5"}),
}


def experts_of(token: int, layers: int, experts: int, k: int) -> list[list[int]]:
    """k distinct experts per layer, uneven as routers are; a fixed function of the token, so that tests know them."""
    rows = []
    for layer in range(layers):
        draw = random.Random(1000 * layer + token)
        chosen: list[int] = []
        while len(chosen) < k:
            expert = int(experts * draw.random() ** (1 + layer % 4 / 2))
            if expert not in chosen:
                chosen.append(expert)
        rows.append(chosen)
    return rows


class FakeApi:
    """Runs in a thread; `with FakeApi() as api: api.url`."""

    def __init__(self, *, layers: int = 5, experts: int = 32, k: int = 4, limit: int = 1024) -> None:
        self.layers, self.experts, self.k, self.limit = layers, experts, k, limit
        self.reset()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                api.get(self)

            def do_POST(self) -> None:
                api.post(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> FakeApi:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        self.key: str | None = None
        self.requests: list[dict[str, Any]] = []
        self.aborted = 0
        self.extra: dict[str, list[dict[str, str]]] = {}  # scripted answers: message -> deltas
        self.starters = ["plain one", "plain two"]

    # ---- HTTP ----

    def get(self, http: BaseHTTPRequestHandler) -> None:
        path = http.path.split("?")[0]
        if path == "/v1/models":
            if self._refused(http):
                return
            _send(http, 200, json.dumps({"object": "list", "data": [self._model()]}).encode(), "application/json")
            return
        file = (PAGE / (path.lstrip("/") or "index.html")).resolve()
        if not file.is_relative_to(PAGE) or not file.is_file():
            _send(http, 404, b"not found", "text/plain")
            return
        headers = {"Content-Security-Policy": CSP, "Cache-Control": "max-age=60"}
        _send(http, 200, file.read_bytes(), TYPES.get(file.suffix, "application/octet-stream"), headers)

    def post(self, http: BaseHTTPRequestHandler) -> None:
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        if self._refused(http):
            return
        self.requests.append(body)
        text = str(body["messages"][-1]["content"])
        if text.startswith("error ") and text not in self.extra:
            code = int(text.split()[1])
            message, headers = ERRORS[code]
            _send(http, code, _error(message), "application/json", headers)
            return
        http.send_response(200)
        http.send_header("Content-Type", "text/event-stream")
        http.send_header("Connection", "close")
        http.end_headers()
        http.close_connection = True
        try:
            for event in self._answer(text, body):
                http.wfile.write(b"data: " + event.encode() + b"\n\n")
                http.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.aborted += 1

    def _refused(self, http: BaseHTTPRequestHandler) -> bool:
        if self.key is None or http.headers.get("Authorization") == f"Bearer {self.key}":
            return False
        _send(http, 401, _error("this server needs an API key"), "application/json")
        return True

    def _model(self) -> dict[str, Any]:
        fathom = {
            "max_model_len": self.limit,
            "thinking": True,
            "format": "v3.1",
            "moe_layers": self.layers,
            "experts": self.experts,
            "experts_per_token": self.k,
            "mtp_depth": 1,
            "dtype": "fp8",
            "default": {"temperature": 0.6, "top_p": 0.95, "top_k": 0, "min_p": 0, "repetition_penalty": 1},
            "starters": self.starters,
        }
        return {"id": "minnow", "object": "model", "fathom": fathom}

    # ---- answers ----

    def _answer(self, text: str, body: dict[str, Any]) -> Iterator[str]:
        yield _chunk({"role": "assistant", "content": ""})
        finish, used, generated = "stop", 120, 40
        if text in self.extra:
            for delta in self.extra[text]:
                yield _chunk(delta)
        elif text.startswith("slow"):
            for i in range(400):
                yield _chunk({"content": f"word{i} "})
                time.sleep(0.03)
        elif text.startswith("think"):
            yield _chunk({"reasoning_content": "First I **consider** it. "})
            time.sleep(0.05)
            yield _chunk({"reasoning_content": "Then I decide."})
            yield _chunk({"content": "The answer is 42."})
        elif text.startswith("inside"):
            yield from self._inside(bool(body.get("inside")))
        elif text.startswith("full"):
            finish, used = "length", self.limit
            yield _chunk({"content": "It ends in the mid"})
        elif text.startswith("cut"):
            yield _chunk({"content": "Half an"})
            return
        elif text.startswith("echo "):
            for start in range(5, len(text), 7):  # odd pieces: Markdown arrives cut anywhere
                yield _chunk({"content": text[start : start + 7]})
        else:
            yield _chunk({"content": f"Answer {len(self.requests)}."})
        yield _chunk({}, finish=finish)
        yield json.dumps({"choices": [], "usage": self._usage(used, generated)})
        yield "[DONE]"

    def _inside(self, wanted: bool) -> Iterator[str]:
        for t in range(40):
            piece = f" tok{t}" if t % 8 else f" tok{t}\n"
            record = {
                "id": t,
                "text": piece,
                "drafted": t % 3 == 2,
                "experts": experts_of(t, self.layers, self.experts, self.k),
            }
            yield _chunk({"content": piece}, tokens=[record] if wanted else None)

    def _usage(self, used: int, generated: int) -> dict[str, Any]:
        return {
            "prompt_tokens": used - generated,
            "completion_tokens": generated,
            "total_tokens": used,
            "prompt_tokens_details": {"cached_tokens": 64},
            "completion_tokens_details": {"reasoning_tokens": 0, "accepted_prediction_tokens": 14},
            "fathom": {
                "time_to_first_token": 0.042,
                "tokens_per_second": 33.25,
                "queue_seconds": 0.001,
                "context_used": used,
                "context_limit": self.limit,
                "drafted": 20,
                "accepted": 14,
            },
        }


def _chunk(delta: dict[str, str], *, finish: str | None = None, tokens: list[dict[str, Any]] | None = None) -> str:
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
    if tokens is not None:
        choice["fathom"] = {"tokens": tokens}
    return json.dumps({"object": "chat.completion.chunk", "model": "minnow", "choices": [choice]})


def _error(message: str) -> bytes:
    return json.dumps(
        {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    ).encode()


def _send(
    http: BaseHTTPRequestHandler, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None
) -> None:
    http.send_response(status)
    http.send_header("Content-Type", kind)
    http.send_header("Content-Length", str(len(body)))
    for name, value in (headers or {}).items():
        http.send_header(name, value)
    http.end_headers()
    http.wfile.write(body)
