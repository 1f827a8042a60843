"""`fathom acceptance`: how many drafts of its MTP module a model accepts, and what they bring, over a file of prompts.

Each line of the file is an object with "messages" (its last answer, if it ends with one, is left out), "prompt", or
"text", of which the first --prompt-tokens tokens are continued. All are answered greedily, one at a time, with drafts
and without.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import tyro

from fathom.engine.llm import LLM
from fathom.engine.params import SamplingParams
from fathom.evals.acceptance import Drafting, drafting
from fathom.runtime import UserError
from fathom.text.dataset import read_jsonl

EXAMPLES = """
  fathom acceptance minnow --prompts data/minnow/sft_heldout.jsonl
  fathom acceptance runs/smol-mtp/export --prompts data/smol/heldout.jsonl --count 20 --max-tokens 100 --json
"""


@dataclass(frozen=True)
class Args:
    """Acceptance of MTP drafts, and decoding speed with and without them."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]]
    """A folder in Hugging Face layout, a hub id, or a name that `fathom models` lists."""
    prompts: Path
    """.jsonl with messages, prompt or text per line."""
    count: int = 30
    """Lines that are taken."""
    max_tokens: int = 80
    """Longest answer."""
    prompt_tokens: int = 32
    """Tokens of a text that are given."""
    drafts: int = 1
    """Tokens drafted per step; more than the model has MTP modules recycle the last one."""
    dtype: str = "auto"
    """auto, bfloat16, float32 or float16."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> int:
    """Measure and print."""
    for name in ("count", "max_tokens", "prompt_tokens", "drafts"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name)}, it must be at least 1")
    llm = LLM(args.model, dtype=args.dtype, speculative=args.drafts, max_running=1)
    records = islice(read_jsonl(args.prompts), args.count)
    prompts = [encode(llm, record, args, number) for number, record in enumerate(records, 1)]
    if not prompts:
        raise UserError(f"{args.prompts} has no line")
    drafted = drafting(llm, prompts, max_tokens=args.max_tokens)
    plain = LLM.from_parts(llm.model, llm.tokenizer, llm.template, speculative=False, max_running=1)
    without = drafting(plain, prompts, max_tokens=args.max_tokens)
    print(json.dumps(report(args, drafted, without)) if args.json else said(args, drafted, without))
    return 0


def encode(llm: LLM, record: dict[str, Any], args: Args, number: int) -> list[int]:
    """The token ids of one line's prompt."""
    if isinstance(messages := record.get("messages"), list) and messages:
        given = messages[:-1] if messages[-1].get("role") == "assistant" else messages
        return llm.check(given, SamplingParams(max_tokens=args.max_tokens))
    text = record.get("prompt", record.get("text"))
    if not isinstance(text, str):
        raise UserError(f"{args.prompts} line {number} has neither messages nor prompt nor text")
    ids = llm.tokenizer.encode(text)
    return ids if "prompt" in record else ids[: args.prompt_tokens]


def report(args: Args, drafted: Drafting, without: Drafting) -> dict[str, Any]:
    """What was measured."""
    return {
        "model": args.model, "prompts": str(args.prompts), "tokens": drafted.tokens,
        "drafted": drafted.acceptance.drafted, "accepted": drafted.acceptance.accepted,
        "acceptance": round(drafted.acceptance.rate, 4),
        "tokens_per_second": round(drafted.tokens_per_second, 2),
        "tokens_per_second_without": round(without.tokens_per_second, 2),
    }  # fmt: skip


def said(args: Args, drafted: Drafting, without: Drafting) -> str:
    """The same for a person."""
    a = drafted.acceptance
    return (
        f"{a.accepted} of {a.drafted} drafts accepted ({a.rate:.1%}) over {drafted.tokens} tokens; "
        f"{drafted.tokens_per_second:.1f} tokens/s with drafts, {without.tokens_per_second:.1f} without"
    )
