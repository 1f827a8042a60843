"""From what a person types to a folder: a path, a Hugging Face hub id (`owner/name`, also offline), or `minnow`."""

from __future__ import annotations

import re
from pathlib import Path

from fathom.runtime import UserError, at_home

BUNDLED = ("minnow",)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


def resolve(model: str | Path) -> Path:
    """The folder of a checkpoint. A folder of that name wins over a bundled model, and both over the hub."""
    path = at_home(model)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path} is a file; give the folder that holds config.json and the safetensors files")
    name = str(model)
    if name in BUNDLED:
        return _bundled(name)
    if HUB_ID.fullmatch(name):
        return _from_hub(name)
    raise UserError(f"{name!r} is neither a folder, a hub id (owner/name) nor a bundled model ({', '.join(BUNDLED)})")


def _bundled(name: str) -> Path:
    folder = Path(__file__).resolve().parent.parent / "assets" / name
    if not (folder / "config.json").exists():
        raise UserError(f"this installation has no {name} in {folder}; install Fathom again or give a folder")
    return folder


def _from_hub(name: str) -> Path:
    """Download into (or find in) huggingface_hub's cache; HF_HUB_OFFLINE and HF_TOKEN work as everywhere."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:  # the library's network and cache errors derive from these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} is no folder here and the hub gave: {reason}; check the name or download it") from None
