"""Prompts of /v1/completions as token ids, and the text they echo.

    text         control tokens in it are recognised, the begin token comes in front (as in fathom.LLM.generate)
    token ids    used as they are
    + suffix     fill in the middle: FIM_BEGIN prompt FIM_HOLE suffix FIM_END, the order in which V3 was trained
                 (report, section 4.1: prefix, suffix, middle); the tokenizer must have the three tokens

A prompt that is too long is refused, never cut.
"""

from __future__ import annotations

from dataclasses import dataclass

from fathom.engine.llm import LLM
from fathom.server.errors import ApiError
from fathom.server.prepare import check_length
from fathom.server.schemas.completion import CompletionRequest

FIM = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")


@dataclass(frozen=True)
class CompletionPrompt:
    ids: list[int]
    text: str
    """What `echo` gives back."""


def prompts_of(llm: LLM, body: CompletionRequest) -> list[CompletionPrompt]:
    """CPU work: call it in a thread."""
    prompt = body.prompt
    many = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    return [_prompt(llm, each, body.suffix) for each in many]


def _prompt(llm: LLM, given: str | list[int], suffix: str | None) -> CompletionPrompt:
    check_length(llm, (given if isinstance(given, str) else "") + (suffix or ""), "prompt")
    tokenizer = llm.tokenizer
    if isinstance(given, list):  # an id that the model does not know is the engine's to refuse
        known = [i for i in given if i < tokenizer.vocab_size]
        ids, text = given, tokenizer.decode(known)
    else:
        ids, text = tokenizer.encode(given, add_bos=suffix is None), given
    if suffix is not None:
        ids = _fill_in_the_middle(llm, ids, tokenizer.encode_plain(suffix))
    return CompletionPrompt(ids, text)


def _fill_in_the_middle(llm: LLM, prefix: list[int], suffix: list[int]) -> list[int]:
    begin, hole, end = (llm.tokenizer.id_of(token) for token in FIM)
    if begin is None or hole is None or end is None:
        message = "this model's tokenizer has no tokens for filling in the middle; leave suffix out"
        raise ApiError(400, message, param="suffix")
    bos = llm.tokenizer.bos_id
    return [*([] if bos is None else [bos]), begin, *prefix, hole, *suffix, end]
