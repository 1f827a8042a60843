"""One door for all checkpoints that an upcycle can start from."""

from __future__ import annotations

from pathlib import Path

from fathom.runtime import UserError
from fathom.upcycle.gguf import GgufSource
from fathom.upcycle.hf import HfSource
from fathom.upcycle.source import Source


def open_source(path: Path) -> Source:
    """A GGUF file, or a folder in Hugging Face layout (or with one GGUF file and no config.json).

    Only headers are read. A UserError says why a checkpoint cannot be upcycled.
    """
    try:
        if path.is_file():
            return GgufSource(path)
        if path.is_dir():
            ggufs = [] if (path / "config.json").exists() else sorted(path.glob("*.gguf"))
            return GgufSource(ggufs[0]) if len(ggufs) == 1 else HfSource(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from None
    raise UserError(f"{path} does not exist; give a folder in Hugging Face layout or a GGUF file")
