"""What the tests of the chat page share: the browser, a page that must stay free of errors, the usual gestures.

The fixtures live for a module: Playwright keeps an event loop running, which tests of asyncio code cannot have around.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from fake_api import FakeApi

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = Path(os.environ.get("FATHOM_CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]
LAYERS, EXPERTS, K, TOKENS = 5, 32, 4, 40  # what the scripted model has, and how long its inside answer is
NOISE = "Failed to load resource"  # the browser's own line for a 4xx that a test asked for


def _missing(what: str) -> NoReturn:
    """A machine without a browser may skip; CI may not."""
    reason = f"the page's tests need {what}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def chromium() -> Iterator[Browser]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("the Python package playwright (its own browsers are not needed)")
    if not CHROMIUM.is_file():
        _missing(f"Chromium at {CHROMIUM} (another place: environment variable FATHOM_CHROMIUM)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def new_profile(browser: Browser, **options: Any) -> Iterator[BrowserContext]:
    profile = browser.new_context(**{"viewport": {"width": 1300, "height": 850}, "color_scheme": "light", **options})
    profile.set_default_timeout(10_000)
    yield profile
    profile.close()


@contextmanager
def visit(profile: BrowserContext, url: str, *, init_script: str = "") -> Iterator[Page]:
    """The page with empty storage. Script errors, CSP violations and foreign requests fail the test.

    One tab serves all tests of a profile: a new one costs a process and a compilation of every script.
    """
    page = profile.pages[0] if profile.pages and not init_script else profile.new_page()
    problems: list[str] = []
    own = (url, "data:", "blob:", "about:")
    listeners: dict[Any, Any] = {
        "pageerror": lambda error: problems.append(f"script error: {error}"),
        "console": lambda m: problems.append(m.text) if m.type == "error" and NOISE not in m.text else None,
        "request": lambda r: None if r.url.startswith(own) else problems.append(f"foreign request: {r.url}"),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    if init_script:
        page.add_init_script(init_script)
    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    try:
        yield page
    finally:
        for event, listener in listeners.items():
            page.remove_listener(event, listener)
        _wipe(page, url)
        if init_script:
            page.close()
    assert problems == []


def _wipe(page: Page, url: str) -> None:
    """Back to a blank tab without a trace, whatever the test did."""
    page.evaluate("() => sessionStorage.clear()")
    page.emulate_media(color_scheme="light")
    page.goto("about:blank")
    data = {"origin": url.rstrip("/"), "storageTypes": "indexeddb,local_storage"}
    page.context.new_cdp_session(page).send("Storage.clearDataForOrigin", data)


def send(page: Page, text: str, *, wait: bool = True) -> None:
    before = page.locator(".message").count()
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    if wait:  # first for the answer to begin: "nothing is running" is true before it, too
        page.wait_for_function("(n) => document.querySelectorAll('.message').length >= n + 2", arg=before)
        settled(page)


def settled(page: Page) -> None:
    """The answer is complete."""
    page.wait_for_selector(".message.running", state="detached")


def answer(page: Page, nth: int = -1) -> Any:
    return page.locator(".message.assistant").nth(nth)


def question(page: Page, nth: int = -1) -> Any:
    return page.locator(".message.user").nth(nth)


def click(scope: Any, name: str) -> None:
    """The button with this accessible name."""
    scope.get_by_role("button", name=name, exact=True).click()


# ---- fixtures ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def expect(browser: Browser) -> Any:
    from playwright.sync_api import expect

    expect.set_options(timeout=10_000)  # machines under load are slow
    return expect


@pytest.fixture(scope="module")
def scripted() -> Iterator[FakeApi]:
    with FakeApi(layers=LAYERS, experts=EXPERTS, k=K) as running:
        yield running


@pytest.fixture(scope="module")
def profile(browser: Browser) -> Iterator[BrowserContext]:
    """Shared for its warm cache; its stored data is cleared before each test."""
    with new_profile(browser) as shared:
        yield shared


@pytest.fixture
def api(scripted: FakeApi) -> FakeApi:
    scripted.reset()
    return scripted


@pytest.fixture
def page(profile: BrowserContext, api: FakeApi) -> Iterator[Page]:
    with visit(profile, api.url) as opened:
        yield opened


# ---- hostile text, and what the browser measures ----

HOSTILE = """<script>window.hacked = 1</script>
<img src=x onerror="window.hacked = 2"> <svg onload="window.hacked = 3"></svg>

<iframe srcdoc="<script>parent.hacked = 4</script>"></iframe>

[link](javascript:window.hacked=5) [data](data:text/html,<script>window.hacked=6</script>) [good](https://example.org/a)

![picture](https://example.org/track.png "t") ![evil](javascript:window.hacked=7)

<a href="javascript:window.hacked=8" onclick="window.hacked=9">raw</a> <p style="position:fixed">x</p>

$\\href{javascript:window.hacked=10}{x}$ $\\htmlStyle{position:fixed}{x}$ E = mc<sup>2</sup>
```html
<script>window.hacked = 11</script>
```
<form action="https://example.org"><input name=a><button>go</button></form>
"""


def assert_harmless(page: Page) -> None:
    page.wait_for_timeout(150)
    assert page.evaluate("() => window.hacked") is None
    prose = page.locator("#messages .prose")
    assert prose.locator("img, iframe, script, form, input, object, [onerror], [onclick], [onload]").count() == 0
    assert prose.locator("p[style], div[style]").count() == 0
    targets = prose.locator("a[href]").evaluate_all(
        "links => links.map((a) => [a.getAttribute('href'), a.target, a.rel])"
    )
    assert targets != []
    for href, target, rel in targets:
        assert href.startswith("https://example.org/")
        assert target == "_blank"
        assert "noopener" in rel


CONTRAST = """(pairs) => {
  const style = getComputedStyle(document.documentElement);
  const light = (name) => {
    const [r, g, b] = style.getPropertyValue('--' + name).trim().match(/[0-9a-f]{2}/g).map((x) => parseInt(x, 16) / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return pairs.map(([a, b]) => { const [x, y] = [light(a), light(b)].sort(); return [a, b, (y + 0.05) / (x + 0.05)]; });
}"""

PIXELS = """(canvas) => {
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const colors = new Map();
  for (let i = 0; i < data.length; i += 4) {
    const color = data.subarray(i, i + 3).join();
    colors.set(color, (colors.get(color) ?? 0) + 1);
  }
  const [width, room] = [canvas.clientWidth, canvas.parentElement.clientWidth];
  return {width, room, chosen: colors.get('196,80,15') ?? 0, colors: colors.size};
}"""
