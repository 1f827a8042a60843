"""Takes the pictures of the chat page in this folder: python docs/screenshots.py (needs Chromium and playwright).

Starts `fathom serve smol` on a free port, talks with it in a real browser and writes page-*.png beside this file.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
QUESTIONS = (
    "What is the capital of France?", "Explain in simple words why the sky is blue.", "Give me a list of five fruits.",
)  # fmt: skip


def ask(page: Page, text: str) -> None:
    """One question, answered to its end."""
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.wait_for_selector(".message.running", state="detached", timeout=120_000)
    page.wait_for_timeout(400)


def picture(
    browser: Browser, url: str, name: str, scheme: str, width: int, height: int,
    *, questions: tuple[str, ...] = QUESTIONS, inside: bool = False,
) -> None:  # fmt: skip
    """A conversation at one size and in one colour scheme."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1
    )  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#starters button")
    if inside:
        page.click("#toggle-inside")
        page.click("#open-inside")
    for question in questions:
        ask(page, question)
    if inside:
        page.locator(".message.assistant").nth(1).scroll_into_view_if_needed()
        page.locator(".message.assistant").nth(1).locator(".token").nth(20).click()
        page.wait_for_timeout(400)
    page.screenshot(path=str(HERE / f"page-{name}.png"))
    context.close()


def main() -> None:
    """All pictures."""
    command = [sys.executable, "-m", "fathom", "serve", "smol", "--port", "0", "--quiet", "--seed", "1"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if line.startswith("chat page"))
        url = line.split()[-1]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
            picture(browser, url, "start", "light", 1280, 800, questions=())
            picture(browser, url, "dark", "dark", 1280, 800)
            picture(browser, url, "phone", "light", 400, 820)
            picture(browser, url, "inside", "light", 1500, 900, inside=True)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
