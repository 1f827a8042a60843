"""Asking /v1/messages."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
from running import Running

PATH = "/v1/messages"
USER = [{"role": "user", "content": "Hi"}]


def create(client: anthropic.Anthropic, **asked: Any) -> Any:
    """With the official client."""
    return client.messages.create(**{"model": "minnow", "max_tokens": 100, "messages": USER, **asked})


def post(server: Running, **asked: Any) -> httpx.Response:
    """Without it."""
    return server.post(PATH, **{"max_tokens": 100, "messages": USER, **asked})
