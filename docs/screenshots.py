"""Takes the pictures of the chat page in this folder: python docs/screenshots.py (needs Chromium and playwright).

Starts `fathom serve` on a free port, talks with minnow in a real browser and writes page-*.png beside this file.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
QUESTIONS = ("Hello! Who are you?", "Tell me a story about a fox.", "What is 12 + 30?")


def ask(page: Page, text: str) -> None:
    """One question, answered to its end."""
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.wait_for_selector(".message.running", state="detached", timeout=120_000)
    page.wait_for_timeout(400)


def picture(browser: Browser, url: str, name: str, scheme: str, width: int, height: int, *, inside: bool) -> None:
    """A conversation at one size and in one colour scheme."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1
    )  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    if inside:
        page.click("#toggle-inside")
        page.click("#open-inside")
    for question in QUESTIONS:
        ask(page, question)
    if inside:
        page.locator(".message.assistant").nth(1).scroll_into_view_if_needed()
        page.locator(".message.assistant").nth(1).locator(".token").nth(20).click()
        page.wait_for_timeout(400)
    page.screenshot(path=str(HERE / f"page-{name}.png"))
    context.close()


def main() -> None:
    """All pictures."""
    command = [sys.executable, "-m", "fathom", "serve", "--port", "0", "--quiet", "--seed", "1"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if line.startswith("chat page"))
        url = line.split()[-1]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
            picture(browser, url, "dark", "dark", 1280, 800, inside=False)
            picture(browser, url, "phone", "light", 400, 820, inside=False)
            picture(browser, url, "inside", "light", 1500, 900, inside=True)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
