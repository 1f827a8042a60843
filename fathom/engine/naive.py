"""The naive generator: one request, one token at a time, no trick. It is the oracle that faster engines must equal.

    prefill   all prompt tokens through the model at once (naive attention), latents kept in the cache
    decode    the newest token alone, absorbed attention over the cached latents
    sample    sampling.sample_row; repeat

The answer ends with reason
    "stop"    after an end token of the model (unless ignore_eos) or one of stop_token_ids; it is yielded like any other
    "length"  after max_tokens, or when prompt + answer fill the context
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.engine.outputs import FinishReason
from fathom.engine.params import SamplingParams
from fathom.engine.sampling import TokenLogprob, make_generator, sample_row
from fathom.model.transformer import DeepseekV3, LatentCache
from fathom.runtime import UserError


@dataclass(frozen=True)
class Step:
    """One generated token. `finish_reason` is set on the last one."""

    token_id: int
    logprob: TokenLogprob | None
    finish_reason: FinishReason | None


def generate_tokens(
    model: DeepseekV3,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    seed: int = 0,
    sample: int = 0,
    eos_ids: Collection[int] = (),
    max_model_len: int | None = None,
) -> Iterator[Step]:
    """Yield the answer to `prompt` token by token. `params.seed` wins over `seed`; `sample` numbers the n samples."""
    limit = max_model_len or model.config.max_position_embeddings
    check_prompt(prompt, limit, model.config.vocab_size)
    room = min(params.max_tokens or limit, limit - len(prompt))
    ends = {*params.stop_token_ids, *(() if params.ignore_eos else eos_ids)}
    generator = make_generator(params.seed if params.seed is not None else seed, sample)
    cache = model.new_cache(1, len(prompt) + room)
    generated: list[int] = []
    new = list(prompt)
    while True:
        logits = next_logits(model, new, cache)
        token, logprob = sample_row(logits, params, generator, prompt=prompt, generated=generated)
        generated.append(token)
        if token in ends:
            yield Step(token, logprob, "stop")
            return
        if len(generated) == room:
            yield Step(token, logprob, "length")
            return
        yield Step(token, logprob, None)
        new = [token]


@torch.inference_mode()
def next_logits(model: DeepseekV3, tokens: Sequence[int], cache: LatentCache) -> Tensor:  # [V] float32
    """Append `tokens` to the cache and return the logits after the last of them (only that row meets the head)."""
    device = model.embed_tokens.weight.device
    h = model.hidden(torch.tensor([tokens], device=device), cache=cache)  # [1, T, D]
    return model.logits(h[:, -1])[0]


def check_prompt(prompt: Sequence[int], limit: int, vocab_size: int) -> None:
    """A prompt is never cut: one that leaves no room for an answer is refused with both numbers."""
    if not prompt:
        raise UserError("the prompt has no tokens and there is no begin token to start from; give at least one token")
    if len(prompt) >= limit:
        raise UserError(
            f"the prompt has {len(prompt)} tokens, the context holds {limit} with at least one for the answer; "
            "shorten the prompt, or raise max_model_len and cache_tokens if the model allows it"
        )
    outside = next((t for t in prompt if not 0 <= t < vocab_size), None)
    if outside is not None:
        raise UserError(f"the prompt has the token id {outside}; the vocabulary ends at {vocab_size - 1}")
