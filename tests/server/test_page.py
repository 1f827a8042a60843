# ruff: noqa: F811
"""The chat page in a real browser, against a scripted API (fake_api.py): asking, answering, errors, looks. What it
keeps, and what it shows of the model's inside, is in test_page_data.py.

Every test starts with empty storage, and fails if the page logs an error, breaks its Content-Security-Policy or asks
any other host for anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from page_helpers import (  # noqa: F401  (the fixtures)
    CONTRAST,
    HOSTILE,
    answer,
    api,
    assert_harmless,
    browser,
    click,
    expect,
    new_profile,
    page,
    profile,
    question,
    scripted,
    send,
    settled,
    visit,
)  # fmt: skip

if TYPE_CHECKING:
    from fake_api import FakeApi
    from playwright.sync_api import Browser, Page


# ---- asking and answering ----


def test_send_stream_and_figures(page: Page, api: FakeApi, expect: Any) -> None:
    expect(page.locator("#empty-facts")).to_contain_text("5 × 32")
    page.fill("#prompt", "plain")
    page.press("#prompt", "Shift+Enter")
    page.type("#prompt", "question")
    page.press("#prompt", "Enter")
    settled(page)
    expect(question(page)).to_contain_text("plain\nquestion")
    expect(answer(page).locator(".prose")).to_have_text("Answer 1.")
    for name, text in {
        "speed": "33.3 tok/s",
        "first": "42 ms to first token",
        "context": "120 / 1,024 context",
        "drafts": "70 % of drafts accepted",
    }.items():
        expect(answer(page).locator(f"[data-stat={name}]")).to_have_text(text)
    expect(page.locator("#context")).to_have_text("120 / 1,024")
    assert api.requests == [
        {
            "model": "minnow",
            "messages": [{"role": "user", "content": "plain\nquestion"}],
            "thinking": False,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_a_starter_is_sent_and_the_unsent_words_stay(page: Page, api: FakeApi, expect: Any) -> None:
    starters = page.locator("#starters button")
    expect(starters).to_have_text(["plain one", "plain two"])
    page.fill("#prompt", "my own words")
    starters.nth(1).click()
    settled(page)
    assert api.requests[0]["messages"] == [{"role": "user", "content": "plain two"}]
    expect(page.locator("#prompt")).to_have_value("my own words")
    expect(page.locator("#empty")).to_be_hidden()
    page.click("#new")
    expect(page.locator("#prompt")).to_have_value("")
    starters.first.focus()
    page.keyboard.press("Enter")
    settled(page)
    assert api.requests[1]["messages"] == [{"role": "user", "content": "plain one"}]


def test_a_model_without_starters_gets_four_of_ours(page: Page, api: FakeApi, expect: Any) -> None:
    api.starters = []
    page.reload()
    expect(page.locator("#starters button")).to_have_count(4)


def test_words_appear_while_they_come_and_escape_stops(page: Page, api: FakeApi, expect: Any) -> None:
    send(page, "slow", wait=False)
    expect(answer(page)).to_contain_text("word3 ")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    settled(page)
    expect(answer(page)).to_contain_text("Stopped.")
    text = answer(page).locator(".prose").inner_text()
    assert 3 < len(text.split()) < 200
    send(page, "plain")  # the kept words are part of the conversation
    assert api.requests[1]["messages"][1]["content"].split() == text.split()
    assert api.aborted == 1  # the server noticed


def test_regenerate_makes_a_version_beside_the_first(page: Page, expect: Any) -> None:
    send(page, "plain")
    click(answer(page), "Regenerate")
    expect(answer(page).locator(".prose")).to_have_text("Answer 2.")
    expect(answer(page).locator(".branch-count")).to_have_text("2/2")
    click(answer(page), "Previous version")
    expect(answer(page).locator(".prose")).to_have_text("Answer 1.")
    expect(answer(page).locator(".branch-count")).to_have_text("1/2")


def test_edit_branches_and_keeps_the_old_branch(page: Page, api: FakeApi, expect: Any) -> None:
    send(page, "plain one")
    send(page, "plain two")
    click(question(page, 0), "Edit and branch")
    page.fill(".edit-area", "plain changed")
    page.press(".edit-area", "Enter")
    expect(answer(page).locator(".prose")).to_have_text("Answer 3.")
    assert [m["content"] for m in api.requests[2]["messages"]] == ["plain changed"]
    assert page.locator(".message").count() == 2
    click(question(page, 0), "Previous version")
    expect(page.locator(".message")).to_have_count(4)
    expect(question(page)).to_contain_text("plain two")


def test_an_edit_that_cannot_be_sent_keeps_its_text(page: Page, expect: Any) -> None:
    send(page, "plain one")
    send(page, "slow", wait=False)
    page.wait_for_function("() => document.querySelectorAll('.message').length === 4")
    click(question(page, 0), "Edit and branch")
    page.fill(".edit-area", "plain changed")
    page.press(".edit-area", "Enter")
    expect(page.locator(".edit-area")).to_have_value("plain changed")
    page.press("#prompt", "Escape")
    settled(page)


def test_a_long_conversation_shows_every_answer_once(page: Page, expect: Any) -> None:
    for number in range(6):
        send(page, f"echo answer **number {number}**")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    first = page.locator(".message.assistant .prose").first
    expect(first.locator("strong")).to_have_text("number 0")  # rendered in idle time
    expect(first).to_have_text("answer number 0")


def test_unsent_words_of_a_new_conversation_are_kept(page: Page, expect: Any) -> None:
    page.fill("#prompt", "not sent yet")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.locator("#prompt")).to_have_value("not sent yet")
    page.keyboard.press("Control+Shift+O")
    expect(page.locator("#prompt")).to_have_value("not sent yet")
    send(page, "plain one")
    page.keyboard.press("Control+Shift+O")
    expect(page.locator("#prompt")).to_have_value("")


def test_the_skip_link_stays_in_the_conversation(page: Page, expect: Any) -> None:
    send(page, "plain one")
    page.locator(".skip-link").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator(".message")).to_have_count(2)


def test_delete_takes_what_follows_and_undo_brings_it_back(page: Page, expect: Any) -> None:
    send(page, "plain one")
    send(page, "plain two")
    click(answer(page, 0), "Delete from here on")
    expect(page.locator(".message")).to_have_count(1)
    click(page, "Undo")
    expect(page.locator(".message")).to_have_count(4)


def test_reasoning_is_folded_and_timed(page: Page, api: FakeApi, expect: Any) -> None:
    click(page, "Think")
    send(page, "think")
    assert api.requests[0]["thinking"] is True
    expect(answer(page).locator(".thought summary")).to_have_text(re.compile(r"^Thought for \d+ ms$"))
    expect(answer(page).locator(".thought-words")).not_to_be_visible()
    answer(page).locator(".thought summary").click()
    expect(answer(page).locator(".thought-words strong")).to_have_text("consider")
    send(page, "plain")  # thoughts are not sent back
    assert api.requests[1]["messages"][1] == {"role": "assistant", "content": "The answer is 42."}


def test_settings_are_sent_only_when_set_and_valid(page: Page, api: FakeApi, expect: Any) -> None:
    click(page, "Settings")
    page.fill("#system", "Be brief.")
    page.get_by_label("Temperature", exact=True).fill("0.3")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Stop strings").fill("END\n###")
    page.get_by_label("Top-p", exact=True).fill("3")
    send(page, "plain", wait=False)
    expect(page.locator(".field.wrong")).to_contain_text("Top-p is 3; it must be between 0.01 and 1.")
    assert api.requests == []
    page.get_by_label("Top-p", exact=True).fill("")
    page.press("#prompt", "Enter")
    expect(answer(page).locator(".prose")).to_have_text("Answer 1.")
    sent = api.requests[0]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["seed"], sent["stop"]) == (0.3, 7, ["END", "###"])
    assert not {"top_p", "top_k", "max_tokens", "presence_penalty"} & set(sent)


# ---- errors ----


def test_a_refusal_shows_the_servers_words(page: Page, expect: Any) -> None:
    send(page, "error 400")
    expect(answer(page)).to_contain_text("temperature is 9.0; it must be between 0 and 2")
    send(page, "error 500")
    expect(answer(page)).to_contain_text("The server failed")


def test_busy_says_when_and_retry_works(page: Page, api: FakeApi, expect: Any) -> None:
    send(page, "error 429")
    expect(answer(page)).to_contain_text("The server is busy")
    expect(answer(page)).to_contain_text(re.compile(r"asks to wait [12]\d s"))
    api.extra["error 429"] = [{"content": "Now there is room."}]
    click(answer(page), "Try again")
    expect(answer(page).locator(".prose")).to_have_text("Now there is room.")
    assert page.locator(".message").count() == 2  # the error gave way


def test_a_broken_connection_keeps_the_words_and_offers_retry(page: Page, api: FakeApi, expect: Any) -> None:
    send(page, "cut")
    expect(answer(page).locator(".prose")).to_have_text("Half an")
    expect(answer(page)).to_contain_text("Connection lost")
    click(answer(page), "Try again")
    expect(answer(page).locator(".branch-count")).to_have_text("2/2")


def test_the_key_is_asked_for_and_forgotten_with_the_tab(page: Page, api: FakeApi, expect: Any) -> None:
    api.key = "secret"
    send(page, "plain")
    expect(answer(page)).to_contain_text("this server needs an API key")
    click(answer(page), "Enter the API key")
    page.get_by_label("API key", exact=True).last.fill("secret")
    click(page, "Use this key")
    expect(answer(page).locator(".prose")).to_have_text("Answer 1.")
    stores = page.evaluate("() => [sessionStorage.getItem('fathom.key'), JSON.stringify({...localStorage})]")
    assert stores[0] == "secret"
    assert "secret" not in stores[1]


def test_a_full_context_is_told_by_the_numbers(page: Page, expect: Any) -> None:
    send(page, "full")
    expect(answer(page).locator("[data-notice=context]")).to_contain_text("1,024 of 1,024 tokens")


# ---- what the model writes ----


MARKDOWN = """# Title

Inline $a_1*b*c$ and \\(x^2\\), $5 and $10.

$$\\frac{1}{2}$$

\\[y\\]

| a | b |
|---|--:|
| 1 | 2 |

```python
def f(x):
    return x < 1 & x
```
"""


def test_markdown_table_code_and_formulas(browser: Browser, api: FakeApi, expect: Any) -> None:
    with new_profile(browser, permissions=["clipboard-read", "clipboard-write"]) as own, visit(own, api.url) as page:
        send(page, f"echo {MARKDOWN}")
        prose = answer(page).locator(".prose")
        expect(prose.locator("h1")).to_have_text("Title")
        expect(prose.locator("td[align=right]")).to_have_text("2")
        expect(prose.locator(".katex")).to_have_count(4)
        expect(prose.locator(".katex-display")).to_have_count(2)
        expect(prose).to_contain_text("$5 and $10.")
        expect(prose.locator(".hljs-keyword").first).to_have_text("def")
        click(prose, "Copy code")
        assert page.evaluate("() => navigator.clipboard.readText()") == "def f(x):\n    return x < 1 & x"


def test_hostile_output_does_not_run(page: Page, api: FakeApi, expect: Any) -> None:
    api.extra["attack"] = [{"content": HOSTILE[i : i + 11]} for i in range(0, len(HOSTILE), 11)]
    send(page, "attack")
    expect(answer(page)).to_contain_text("<script>window.hacked = 1</script>")  # shown, as text
    expect(answer(page).locator("sup")).to_have_text("2")
    for link in answer(page).locator(".prose a:not([href])").all():
        link.click()
    assert_harmless(page)


# ---- looks, sizes, keys ----


@pytest.mark.parametrize("width", [400, 360])
def test_a_phone_has_no_sideways_scroll_and_can_send(browser: Browser, api: FakeApi, expect: Any, width: int) -> None:
    wide = (
        "echo "
        + "x" * 300
        + "\n\n|"
        + " wide column |" * 12
        + "\n|"
        + "---|" * 12
        + "\n\n```\n"
        + "y" * 300
        + "\n```\n\n$$"
        + "a+" * 90
        + "b$$\n"
    )
    with (
        new_profile(browser, viewport={"width": width, "height": 740}, has_touch=True, is_mobile=True) as own,
        visit(own, api.url) as page,
    ):
        page.fill("#prompt", wide)
        page.press("#prompt", "Enter")  # breaks the line: a touch screen has no Shift+Enter
        expect(page.locator(".message")).to_have_count(0)
        click(page, "Send")
        settled(page)
        expect(answer(page).locator("table")).to_be_visible()
        sizes = page.evaluate(
            "() => [document.documentElement.scrollWidth, document.querySelector('#thread').scrollWidth, innerWidth]"
        )
        assert sizes[0] <= width and sizes[1] <= width and sizes[2] == width
        page.locator("#sidebar-toggle").tap()
        expect(page.locator(".conversation")).to_be_in_viewport()
        page.locator("#new").tap()
        expect(page.locator("#sidebar")).not_to_be_in_viewport()
        page.locator("#open-settings").tap()
        expect(page.locator("#system")).to_be_in_viewport()
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_theme_follows_the_system_until_chosen(browser: Browser, api: FakeApi, expect: Any) -> None:
    with new_profile(browser, color_scheme="dark") as own, visit(own, api.url) as page:
        root = page.locator("html")
        expect(root).to_have_attribute("data-theme", "dark")
        page.emulate_media(color_scheme="light")
        expect(root).to_have_attribute("data-theme", "light")
        click(page, "Dark theme")
        expect(root).to_have_attribute("data-theme", "dark")
        page.reload()
        expect(root).to_have_attribute("data-theme", "dark")
        click(page, "Light theme")  # the system's choice again: follow it from here
        page.emulate_media(color_scheme="dark")
        expect(root).to_have_attribute("data-theme", "dark")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_readable_and_everything_has_a_name(page: Page, theme: Any) -> None:
    page.emulate_media(color_scheme=theme)
    inks = ["text", "soft", "faint", "accent", "danger", "warn", "code-comment", "code-string", "code-type"]
    pairs = [[ink, ground] for ink in inks for ground in ("bg", "surface", "sunken")]
    pairs += [
        ["on-accent", "accent"],
        ["accent", "accent-soft"],
        ["warn", "warn-soft"],
        ["danger", "danger-soft"],
        ["text", "bubble"],
        ["faint", "hover"],
    ]
    poor = [pair for pair in page.evaluate(CONTRAST, pairs) if pair[2] < 4.5]
    assert poor == []
    send(page, "think")
    click(page, "Settings")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, a, canvas')]
        .filter((el) => !el.getAttribute('aria-label') && !el.textContent.trim() && !el.labels?.length)
        .filter((el) => el.getClientRects().length)
        .map((el) => el.outerHTML)"""
    )
    assert nameless == []


def test_keys(page: Page, expect: Any) -> None:
    send(page, "plain one")
    page.press("#prompt", "ArrowUp")
    expect(page.locator(".edit-area")).to_have_value("plain one")
    page.press(".edit-area", "Escape")
    expect(page.locator(".edit-area")).to_have_count(0)
    page.locator("#thread").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_contain_text("Regenerate the last answer")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Control+Shift+Enter")
    expect(answer(page).locator(".branch-count")).to_have_text("2/2")
    page.locator("#thread").focus()
    page.keyboard.press("/")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.press("Control+Shift+O")
    expect(page.locator(".message")).to_have_count(0)
