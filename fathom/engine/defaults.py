"""What a checkpoint says about sampling: the defaults of LLM, chat, generate and server alike.

generation_config.json stands in the model's folder and has Hugging Face's names; here they become SamplingParams:

    temperature, top_p, top_k, min_p, repetition_penalty      the same
    max_new_tokens                                            max_tokens
    do_sample: false                                          temperature 0

What a request says comes first, field by field. Without the file, or for what it leaves out, SamplingParams' own
defaults hold: temperature 1, every token may be drawn. (Transformers' differ: there an absent `do_sample` means greedy
and an absent `top_k` means 50; the published files of the V3 family rely on neither.) A value that cannot be used is
left out with a warning, since the file may be somebody else's.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from fathom.engine.params import SamplingParams
from fathom.runtime import UserError
from fathom.text.tokenizer import optional_json

GENERATION_CONFIG = "generation_config.json"
FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def default_sampling(folder: Path) -> SamplingParams:
    """What a request gets that says nothing itself."""
    config = optional_json(folder / GENERATION_CONFIG)
    params = SamplingParams()
    for theirs, ours in FIELDS.items():
        value = config.get(theirs)
        if value is None:
            continue
        try:
            params = params.replace(**{ours: value})
        except UserError as error:
            warnings.warn(f"{folder / GENERATION_CONFIG} is not followed in one point: {error}", stacklevel=2)
    return params.replace(temperature=0) if config.get("do_sample") is False else params


def sampling_dict(params: SamplingParams) -> dict[str, Any]:
    """The fields that a checkpoint may set, by our names."""
    return {name: getattr(params, name) for name in FIELDS.values()}


def described(params: SamplingParams) -> str:
    """For people: `temperature 0.3, top_p 0.9`; of the other fields what is not the default."""
    usual = SamplingParams()
    fields = sampling_dict(params)
    if params.temperature == 0:
        return "greedy"
    named = [f"temperature {fields.pop('temperature'):g}", f"top_p {fields.pop('top_p'):g}"]
    return ", ".join(named + [f"{name} {value:g}" for name, value in fields.items() if value != getattr(usual, name)])
