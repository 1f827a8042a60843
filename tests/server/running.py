"""The app in uvicorn on a free port, in a thread, with a client of each kind."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import uvicorn
from fake_service import FakeService

from fathom.server.app import create_app
from fathom.server.serving import Connection, bind
from fathom.server.settings import Settings

KEY = "key-of-a-fish-0123456789"


class Running:
    def __init__(self, fake: FakeService, settings: Settings) -> None:
        self.fake = fake
        self.app = create_app(fake, settings)  # type: ignore[arg-type]
        listener = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            self.app, http=Connection, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started)
        headers = {"authorization": f"Bearer {settings.api_keys[0]}"} if settings.api_keys else {}
        self.http = httpx.Client(base_url=self.url, timeout=10, headers=headers)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=(settings.api_keys or (KEY,))[0], max_retries=0)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json={"model": "minnow", **body})

    def chat(self, content: str = "Hi", **body: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", **{"messages": [{"role": "user", "content": content}], **body})

    def stream(self, path: str, **body: Any) -> list[Any]:
        """The events of a stream, parsed, [DONE] as text, comments left out."""
        response = self.post(path, stream=True, **body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    def close(self) -> None:
        self.http.close()
        self.openai.close()
        self.server.should_exit = True
        self.thread.join(5)


def wait_for(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@contextlib.contextmanager
def running(fake: FakeService, **settings: Any) -> Iterator[Running]:
    server = Running(fake, Settings(**{"quiet": True, **settings}))
    try:
        yield server
    finally:
        server.close()


def refused(response: httpx.Response, status: int, param: str | None, *words: str) -> dict[str, Any]:
    """Check an error's shape, status, field and words."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    for word in words:
        assert word in error["message"], error
    return error  # type: ignore[no-any-return]
