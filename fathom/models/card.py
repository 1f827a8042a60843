"""The card of a model: README.md in its folder, with YAML between two lines of three dashes first, as on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

MAX_CARD_BYTES = 2**20
MAX_STARTERS, MAX_STARTER_CHARS = 4, 200


def front_matter(folder: Path) -> dict[str, Any]:
    """What stands first in a card; empty if there is no card or none that can be read (it is somebody else's prose)."""
    try:
        with open(folder / "README.md", encoding="utf-8") as file:
            text = file.read(MAX_CARD_BYTES)
    except (OSError, UnicodeDecodeError):
        return {}
    head, fence, _ = text.removeprefix("---\n").partition("\n---")
    if not text.startswith("---\n") or not fence:
        return {}
    try:
        found = yaml.safe_load(head)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def starters(folder: Path) -> tuple[str, ...]:
    """Things to say to the model, at most four: the `widget` entries of its card, which the hub's page offers too.
    An entry is {text: ...} or {messages: [{role: user, content: ...}]}."""
    widget = front_matter(folder).get("widget")
    found: list[str] = []
    for entry in widget if isinstance(widget, list) else []:
        text = entry.get("text") if isinstance(entry, dict) else None
        messages = entry.get("messages") if isinstance(entry, dict) else None
        if isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], dict):
            text = messages[0].get("content")
        if isinstance(text, str) and 0 < len(text.strip()) <= MAX_STARTER_CHARS:
            found.append(text.strip())
    return tuple(dict.fromkeys(found))[:MAX_STARTERS]
