"""`fathom serve` as a process: start-up, signals, and a real answer."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from running import wait_for

from fathom.commands.serve import Args, check_origins, parse_speculative, run
from fathom.models.card import starters
from fathom.models.registry import ASSETS
from fathom.runtime import UserError
from fathom.server.settings import public_name

HERE = Path(__file__).parent
BODY = {"model": "minnow", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


class Client(threading.Thread):
    """Reads one stream to its end."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.text = url, ""
        self.start()

    def run(self) -> None:
        with (
            contextlib.suppress(httpx.RemoteProtocolError),
            httpx.stream("POST", f"{self.url}/v1/chat/completions", json=BODY, timeout=60) as response,
        ):
            for piece in response.iter_text():
                self.text += piece


@contextlib.contextmanager
def fake_process(drain: float, pause: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, str(HERE / "serve_fake.py"), str(drain), str(pause)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def test_sigterm_lets_answers_finish():
    with fake_process(drain=30, pause=0.05) as (process, url):
        client = Client(url)
        wait_for(lambda: "fish" in client.text, 20)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 503, 20)
        assert httpx.post(f"{url}/v1/chat/completions", json=BODY).status_code == 503
        client.join(60)
        assert client.text.endswith("data: [DONE]\n\n") and client.text.count("fish") == 40
        assert process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def test_drain_seconds_bound_the_wait():
    with fake_process(drain=0.2, pause=0.5) as (process, url):
        client = Client(url)
        wait_for(lambda: "fish" in client.text, 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        client.join(20)
        assert "[DONE]" not in client.text and '"error"' in client.text


def test_a_second_signal_ends_at_once():
    with fake_process(drain=60, pause=0.5) as (process, url):
        client = Client(url)
        wait_for(lambda: "fish" in client.text, 20)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 503, 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM


def test_a_port_in_use_is_one_line_before_the_weights_are_read():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}.*--port"):
            run(Args(model="no-such-model", port=port))


@pytest.mark.parametrize("args", [{"host": "no.such.host.invalid"}, {"port": 70000}, {"speculative": "maybe"},
                                  {"cors_origin": ("fish",)}, {"drain_seconds": -1}, {"api_key_file": "/no/file"},
                                  {"port": 0, "model": "no-such-model"}])  # fmt: skip
def test_wrong_flags_are_one_line(args):
    with pytest.raises(UserError):
        run(Args(**args))


def test_flags_as_values():
    assert [parse_speculative(s) for s in ("auto", "on", "off", "0", "3")] == ["auto", True, False, 0, 3]
    assert check_origins(("*", "http://localhost:3000")) == ("*", "http://localhost:3000")
    with pytest.raises(UserError, match="path"):
        check_origins(("http://a/b",))


def test_a_folder_is_shown_by_its_name_only(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert public_name(str(folder)) == "my-model" and public_name("owner/name") == "owner/name"


def test_the_whole_command():
    """minnow, a free port, an answer, SIGTERM."""
    command = [sys.executable, "-m", "fathom", "serve", "minnow", "--port", "0", "--cache-tokens", "4096"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    assert process.stderr is not None
    threading.Thread(target=lambda: said.extend(iter(process.stderr.readline, "")), daemon=True).start()
    try:
        wait_for(lambda: any(line.startswith("keys") for line in said), 120)
        text = "".join(said)
        facts = ("minnow, 22.4M parameters, 6.5M activated", "FP8", "4,096 tokens", "temperature 0.6, top_p 0.95")
        for words in (*facts, "/v1", "/docs", "none"):
            assert words in text, text
        url = re.search(r"http://[\d.:]+", text)
        assert url is not None
        answer = httpx.post(f"{url[0]}/v1/chat/completions", json={**BODY, "stream": False}, timeout=60).json()
        assert answer["choices"][0]["message"]["content"]
        about = httpx.get(f"{url[0]}/v1/models").json()["data"][0]["fathom"]
        assert about["default"]["temperature"] == 0.6 and about["starters"] == list(starters(ASSETS / "minnow"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "SIGTERM" in "".join(said) and "POST /v1/chat/completions 200" in "".join(said)
    finally:
        process.kill()
        process.wait()
