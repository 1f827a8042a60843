"""The chat page over the real server and the bundled model: one conversation, with the model's inside shown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from page_helpers import answer, chromium, new_profile, send, settled, visit
from running import Running, running

from fathom.engine.llm import LLM
from fathom.engine.service import EngineService


@pytest.fixture(scope="module")
def minnow() -> Iterator[Running]:
    service = EngineService(LLM("minnow", cache_tokens=4096, seed=1))
    service.start()
    with running(service) as server:  # type: ignore[arg-type]
        yield server
    service.stop()


def test_a_conversation_with_minnow(minnow: Running) -> None:
    with chromium() as browser, new_profile(browser) as profile, visit(profile, f"{minnow.url}/") as page:
        send(page, "Hello! Who are you?")
        first = answer(page).inner_text()
        assert "tok/s" in first and "context" in first.lower()
        page.click("#toggle-inside")
        send(page, "Tell me a story about a fox.")
        page.locator(".token.drafted").nth(3).wait_for()  # MTP's accepted drafts are marked
        settled(page)
        page.click("#open-inside")
        page.locator("#inside-facts", has_text="layer").wait_for()
        assert page.evaluate("() => document.querySelectorAll('.message.assistant').length") == 2
