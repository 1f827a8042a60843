# ruff: noqa: F811
"""The chat page in a real browser: conversations (kept, found, exported, imported) and the inside of the model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_api import FakeApi, experts_of
from page_helpers import (  # noqa: F401  (the fixtures)
    EXPERTS,
    HOSTILE,
    LAYERS,
    PIXELS,
    TOKENS,
    K,
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
    from playwright.sync_api import Browser, BrowserContext, Page


# ---- conversations ----


def test_reload_keeps_the_history(page: Page, expect: Any) -> None:
    send(page, "plain one")
    click(answer(page), "Regenerate")
    settled(page)
    send(page, "slow", wait=False)
    expect(answer(page)).to_contain_text("word3 ")
    page.wait_for_timeout(1100)  # one periodic save
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.locator(".message")).to_have_count(4)
    expect(answer(page, 0).locator(".branch-count")).to_have_text("2/2")
    expect(answer(page)).to_contain_text("word3 ")
    expect(answer(page)).to_contain_text("Interrupted")


def test_an_answer_goes_on_in_the_background(page: Page, api: FakeApi, expect: Any) -> None:
    send(page, "slow", wait=False)
    expect(answer(page)).to_contain_text("word1 ")
    click(page, "New conversation")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator(".conversation.busy")).to_have_count(1)
    send(page, "plain")
    expect(answer(page).locator(".prose")).to_have_text("Answer 2.")
    page.locator(".conversation-open", has_text="slow").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    settled(page)


def _import(page: Page, text: str) -> None:
    page.set_input_files("#import-file", {"name": "a.json", "mimeType": "application/json", "buffer": text.encode()})


def _export_all(page: Page) -> str:
    click(page, "Import, export, delete all")
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Export all").click()
    return Path(download.value.path()).read_text(encoding="utf-8")


def test_export_and_import_into_another_browser(browser: Browser, page: Page, api: FakeApi, expect: Any) -> None:
    send(page, "plain one")
    click(answer(page), "Regenerate")
    settled(page)
    click(page, "New conversation")
    send(page, "think")
    text = _export_all(page)
    assert len(json.loads(text)["conversations"]) == 2
    with new_profile(browser) as own, visit(own, api.url) as other:
        _import(other, text)
        expect(other.locator(".conversation")).to_have_count(2)
        other.locator(".conversation-open", has_text="plain one").click()
        expect(answer(other).locator(".branch-count")).to_have_text("2/2")
        expect(answer(other).locator("[data-stat=speed]")).to_have_text("33.3 tok/s")
        once, again = (
            [
                {k: v for k, v in n.items() if k in ("role", "content", "reasoning")}
                for c in json.loads(t)["conversations"]
                for n in c["nodes"].values()
            ]
            for t in (text, _export_all(other))
        )
        key = json.dumps
        assert sorted(map(key, [{k: v for k, v in n.items() if v} for n in once])) == sorted(map(key, again))


def _file(nodes: dict[str, Any], title: str = "t") -> str:
    return json.dumps({"fathom": "conversations", "version": 1, "conversations": [{"title": title, "nodes": nodes}]})


def _message(parent: str | None) -> dict[str, Any]:
    return {"parent": parent, "role": "user", "content": ""}


BAD_FILES = {
    "not json": ("{oops", "it is not JSON"),
    "other": ('{"a": 1}', "it is not an export of this page"),
    "version": (
        '{"fathom": "conversations", "version": 9, "conversations": []}',
        "its version is 9; this page reads version 1",
    ),
    "role": (
        _file({"a": {"parent": None, "role": "tool", "content": ""}}),
        'conversation 1, message 1: role is "tool"',
    ),
    "circle": (_file({"a": _message("b"), "b": _message("a")}), "its messages form a circle"),
    "orphan": (_file({"a": _message("z")}), "answers a message that is not in the file"),
}


def test_bad_files_are_refused_with_a_reason(page: Page, expect: Any) -> None:
    for text, reason in BAD_FILES.values():
        _import(page, text)
        expect(page.locator("dialog[open]")).to_contain_text(reason)
        click(page.locator("dialog[open]"), "OK")
    expect(page.locator(".conversation")).to_have_count(0)


def test_an_imported_conversation_is_sanitised_too(page: Page, expect: Any) -> None:
    title = "<img src=x onerror=window.hacked=1>"
    nodes = {
        "__proto__x": {"parent": None, "role": "user", "content": HOSTILE},
        "b": {
            "parent": "__proto__x",
            "role": "assistant",
            "content": HOSTILE,
            "model": title,
            "error": {"title": title},
        },
    }
    _import(
        page, json.dumps({"fathom": "conversations", "version": 1, "conversations": [{"title": title, "nodes": nodes}]})
    )
    expect(page.locator(".conversation-title")).to_have_text(title)
    expect(page.locator("#title")).to_have_text(title)
    assert_harmless(page)


def test_search_rename_delete(page: Page, expect: Any) -> None:
    send(page, "echo The haystack holds a Needle of steel.")
    click(page, "New conversation")
    send(page, "plain other")
    page.keyboard.press("Control+k")
    page.keyboard.type("needle STEEL")
    expect(page.locator(".conversation")).to_have_count(1)
    expect(page.locator(".conversation-snippet mark").first).to_have_text("Needle")
    page.fill("#search", "nowhere")
    expect(page.locator("#conversations")).to_contain_text("Nothing found.")
    page.fill("#search", "")
    row = page.locator(".conversation", has_text="plain other")
    row.get_by_role("button", name="Actions for plain other").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.fill(".rename", "My title")
    page.press(".rename", "Enter")
    expect(page.locator("#title")).to_have_text("My title")
    page.get_by_role("button", name="Actions for My title").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(page.locator(".conversation")).to_have_count(1)
    click(page, "Undo")
    expect(page.locator(".conversation")).to_have_count(2)
    expect(answer(page)).to_contain_text("Answer")


def test_a_full_storage_is_told_and_the_talk_goes_on(profile: BrowserContext, api: FakeApi, expect: Any) -> None:
    full = "IDBObjectStore.prototype.put = () => { throw new DOMException('no room', 'QuotaExceededError'); };"
    with visit(profile, api.url, init_script=full) as page:
        send(page, "plain one")
        expect(page.locator("#toasts")).to_contain_text("The browser's storage is full")
        send(page, "plain two")
        expect(answer(page).locator(".prose")).to_have_text("Answer 2.")
        assert len(api.requests[1]["messages"]) == 3


# ---- inside ----


def _loads() -> list[Counter[int]]:
    counts = [Counter[int]() for _ in range(LAYERS)]
    for t in range(TOKENS):
        for layer, chosen in enumerate(experts_of(t, LAYERS, EXPERTS, K)):
            counts[layer].update(chosen)
    return counts


def _listed_experts(page: Page) -> list[list[int]]:
    if not page.locator("#token-list").is_visible():
        page.locator(".as-text summary").click()
    return [[int(e) for e in text.split(",")] for text in page.locator("#token-list dd").all_inner_texts()]


def test_inside_shows_drafts_experts_and_load(page: Page, api: FakeApi, expect: Any) -> None:
    click(page, "Inside")
    send(page, "inside")
    assert api.requests[0]["inside"] is True
    tokens = answer(page).locator(".token")
    expect(tokens).to_have_count(TOKENS)
    expect(answer(page).locator(".token.drafted")).to_have_count(sum(t % 3 == 2 for t in range(TOKENS)))
    tokens.nth(11).click()
    expect(page.locator("#token-facts")).to_contain_text("token 12 of 40, id 11, an accepted draft")
    assert _listed_experts(page) == experts_of(11, LAYERS, EXPERTS, K)
    page.locator(".tokens").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#token-facts")).to_contain_text("token 13 of 40, id 12, from the main model")
    assert _listed_experts(page) == experts_of(12, LAYERS, EXPERTS, K)
    ratios = [max(layer.values()) / (TOKENS * K / EXPERTS) for layer in _loads()]
    expect(page.locator("#inside-facts")).to_contain_text(f"{max(ratios):.2f} (layer {ratios.index(max(ratios))})")
    expect(page.locator("#inside-facts")).to_contain_text(f"{sorted(ratios)[LAYERS // 2]:.2f}")


def test_inside_an_expert_tints_its_tokens(page: Page, expect: Any) -> None:
    click(page, "Inside")
    send(page, "inside")
    page.keyboard.press("Control+i")
    expect(page.locator("#inside-facts")).to_contain_text("never chosen")  # the record was read and its picture drawn
    page.locator("#load-map").focus()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    wanted = [t for t in range(TOKENS) if 3 in experts_of(t, LAYERS, EXPERTS, K)[2]]
    expect(page.locator("#load-readout")).to_contain_text(f"expert 3: {len(wanted)} token")
    marked = answer(page).locator(".token.routed").evaluate_all("spans => spans.map((s) => Number(s.dataset.t))")
    assert marked == wanted
    page.reload()  # the record was stored
    page.wait_for_selector("html[data-ready]")
    answer(page).locator(".token").nth(5).click()
    assert _listed_experts(page) == experts_of(5, LAYERS, EXPERTS, K)
    click(answer(page), "Text")
    expect(answer(page).locator(".prose")).to_contain_text("tok39")


@pytest.mark.parametrize(("layers", "experts", "k"), [(6, 32, 4), (58, 256, 8)])
def test_the_pictures_fit_and_show_every_choice(
    profile: BrowserContext, expect: Any, layers: int, experts: int, k: int
) -> None:
    with FakeApi(layers=layers, experts=experts, k=k) as api, visit(profile, api.url) as page:
        click(page, "Inside")
        send(page, "inside")
        answer(page).locator(".token").first.click()
        expect(page.locator("#token-facts")).to_contain_text("token 1 of 40")
        page.wait_for_timeout(100)
        token, load = (page.locator(name).evaluate(PIXELS) for name in ("#token-map", "#load-map"))
        assert token["width"] <= token["room"]
        assert load["width"] <= load["room"]
        smallest_cell = 3 * 4  # px: drawn at least this large, some overlap their neighbours
        assert token["chosen"] > 0.6 * layers * k * smallest_cell
        assert load["colors"] > 10


def test_two_tabs_keep_what_both_say(browser: Browser, api: FakeApi, expect: Any) -> None:
    """One answers while the other edits and sends: neither loses a message, nor an open field its text."""
    with new_profile(browser) as own, visit(own, api.url) as one:
        send(one, "plain one")
        two = own.new_page()
        two.goto(one.url)
        two.wait_for_selector("html[data-ready]")
        send(one, "slow", wait=False)
        expect(answer(one)).to_contain_text("word3 ")
        click(question(two, 0), "Edit and branch")
        two.fill(".edit-area", "plain changed")
        expect(answer(two)).to_contain_text("word40 ")  # it sees the other's words come
        expect(two.locator(".edit-area")).to_have_value("plain changed")
        two.press(".edit-area", "Enter")
        expect(answer(two).locator(".prose")).to_contain_text("Answer 3.")
        one.keyboard.press("Escape")
        settled(one)
        one.wait_for_timeout(300)  # for the last save
        for page in (one, two):
            page.reload()
            page.wait_for_selector("html[data-ready]")
            expect(question(page, 0).locator(".branch-count")).to_contain_text("/2")
        click(question(two), "Delete from here on")
        expect(one.locator(".message")).to_have_count(two.locator(".message").count())
        one.reload()
        one.wait_for_selector("html[data-ready]")
        expect(one.locator(".message")).to_have_count(two.locator(".message").count())
        two.close()
