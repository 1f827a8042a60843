"""A checkpoint by its path or its Hugging Face hub id (`owner/name`, also offline). Names like `minnow` are one layer
up: models/resolve.py asks here first."""

from __future__ import annotations

import re
from pathlib import Path

from fathom.runtime import UserError, at_home

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md"]


def locate(model: str | Path) -> Path | None:
    """The folder of a path or hub id; None if it is neither."""
    path = at_home(model)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path} is a file; give the folder that holds config.json and the safetensors files")
    return _from_hub(str(model)) if HUB_ID.fullmatch(str(model)) else None


def _from_hub(name: str) -> Path:
    """Download into (or find in) huggingface_hub's cache; HF_HUB_OFFLINE and HF_TOKEN work as everywhere."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:  # the library's network and cache errors derive from these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} is no folder here and the hub gave: {reason}; check the name or download it") from None
