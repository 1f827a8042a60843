"""How often the MTP module's draft is what the model says next: the acceptance rate of speculative decoding, depth 1.

    greedy_acceptance   of a model: greedy decoding writes an answer; position i of the MTP module, which reads the
                        hidden state of token i and the token i+1 just decoded, drafts token i+2. A draft counts as
                        accepted when greedy decoding then chose that very token
    drafting            of an engine: what its own metrics say, and its speed

(The report, section 5.4.3: 85-90 % for V3.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fathom.engine.llm import LLM
from fathom.engine.naive import generate_tokens
from fathom.engine.params import SamplingParams
from fathom.model.transformer import DeepseekV3
from fathom.runtime import progress


@dataclass(frozen=True)
class Acceptance:
    """Counts over all drafts."""

    drafted: int
    accepted: int

    @property
    def rate(self) -> float:
        """Share of drafts accepted."""
        return self.accepted / max(self.drafted, 1)


@torch.inference_mode()
def greedy_acceptance(
    model: DeepseekV3, prompts: Sequence[Sequence[int]], *, max_tokens: int = 128, eos_ids: Sequence[int] = ()
) -> Acceptance:
    """Decode each prompt greedily and count accepted drafts of depth 1."""
    drafted = accepted = 0
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    for prompt in prompts:
        answer = [step.token_id for step in generate_tokens(model, prompt, params, eos_ids=eos_ids)]
        if len(answer) < 2:
            continue
        sequence = torch.tensor([[*prompt, *answer]], device=model.embed_tokens.weight.device)
        drafts = model.mtp_logits(sequence)[0].argmax(-1)[len(prompt) - 1 : -1]  # drafts[j] is for answer[j + 1]
        said = sequence[0, len(prompt) + 1 :]
        drafted += len(said)
        accepted += int((drafts == said).sum())
    return Acceptance(drafted, accepted)


@dataclass(frozen=True)
class Drafting:
    """Of one engine over several prompts, one after the other."""

    acceptance: Acceptance
    tokens: int
    tokens_per_second: float  # decoding: prompts do not count


def drafting(llm: LLM, prompts: Sequence[Sequence[int]], *, max_tokens: int) -> Drafting:
    """Answer each prompt (token ids) greedily with an engine that drafts, or not."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    drafted = accepted = tokens = 0
    decoded, seconds = 0, 0.0
    with progress("answers", len(prompts), "prompts") as bar:
        for prompt in prompts:
            m = llm.generate(list(prompt), params)[0].metrics
            drafted, accepted, tokens = drafted + m.drafted, accepted + m.accepted, tokens + m.generated_tokens
            if m.generated_tokens > 1:
                decoded += m.generated_tokens - 1
                seconds += (m.generated_tokens - 1) / m.tokens_per_second
            bar.advance(1)
    return Drafting(Acceptance(drafted, accepted), tokens, decoded / max(seconds, 1e-9))
