"""Which model answers when nobody named one: smol, or minnow where smol cannot be had."""

from __future__ import annotations

import sys

from fathom.models.registry import BUNDLED, DEFAULT
from fathom.models.resolve import resolve
from fathom.runtime import UserError


def choose(model: str | None) -> str:
    """`model` if one was named: what is wrong with it is an error. Else smol, made now if need be; where that fails (no
    network, no room), minnow with a line that says why."""
    if model is not None:
        return model
    try:
        resolve(DEFAULT)
    except UserError as error:
        print(f"fathom: {error}. {BUNDLED} answers, the small model that is bundled", file=sys.stderr, flush=True)
        return BUNDLED
    return DEFAULT
