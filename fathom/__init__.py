"""Fathom: the whole DeepSeek-V3 system in one Python code base.

The public API; each name is imported when it is first used, so that `import fathom` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fathom.config import ModelConfig
    from fathom.engine.llm import LLM
    from fathom.engine.params import SamplingParams
    from fathom.models.load import load_model

__version__ = "0.1.0"
__all__ = ["LLM", "ModelConfig", "SamplingParams", "__version__", "load_model"]

_HOME = {
    "LLM": "fathom.engine.llm",
    "ModelConfig": "fathom.config",
    "SamplingParams": "fathom.engine.params",
    "load_model": "fathom.models.load",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fathom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
