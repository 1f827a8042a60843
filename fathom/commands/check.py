"""`fathom check`: is what this machine computes the model, and how fast is it?"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table

from fathom.engine import selfcheck
from fathom.engine.llm import LLM
from fathom.engine.setup import free_memory
from fathom.model.transformer import DeepseekV3
from fathom.runtime import UserError

TEXTS = (
    "Once upon a time there was a little fox who lived at the edge of the forest. ",
    "Question: what is 17 + 25? Answer: 17 + 25 = 42, since 17 + 20 = 37 and 37 + 5 = 42. ",
    "def add(a, b):\n    return a + b\n\n",
)
TOLERANCE = 1e-3  # of the logits' standard deviation, in the root mean square, where everything is FP32 but the weights
TOLERANCE_NARROW = 0.1  # where activations or cache are BF16 or FP8: a router's near tie may fall the other way

EXAMPLES = """
  fathom check                          the bundled model, as it is served
  fathom check DIR --dtype float32      every difference left is rounding in FP32
  fathom check DIR --json
"""


@dataclass(frozen=True)
class Args:
    """Compare the fast path of this machine with the reference on the same prompts, and measure its speed."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="[MODEL]")]] = "minnow"
    """A folder in Hugging Face layout, a hub id, or a name that `fathom models` lists."""
    dtype: str = "auto"
    """auto (weights as stored), float32, bfloat16 or float16."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    cache: str = "auto"
    """auto, float32, bfloat16 or fp8: the format of the latent cache."""
    kernels: str = "auto"
    """auto, cpu (the compiled step) or torch."""
    tokens: int = 128
    """Tokens to decode for the measurement."""
    json: bool = False
    """Print one JSON object instead of a table."""


def run(args: Args) -> int:
    """Compare, measure, print; exit code 1 if the difference is larger than rounding explains."""
    if args.tokens < 2:
        raise UserError(f"--tokens is {args.tokens}; at least 2 are needed to measure a rate")
    llm = LLM(
        args.model, dtype=args.dtype, device=args.device, kernels=args.kernels, cache=args.cache, speculative=False
    )
    longest = min(llm.max_model_len - args.tokens, 512)
    if longest < 2 * selfcheck.SINGLE:
        raise UserError(f"--tokens is {args.tokens}, the context holds {llm.max_model_len}; ask for fewer tokens")
    prompts = [llm.tokenizer.encode(text * 100, add_bos=True)[:longest] for text in TEXTS]
    difference = selfcheck.compare(llm, _reference(args, llm), prompts)
    bandwidth = selfcheck.memory_bandwidth(llm.model.embed_tokens.weight.device)
    bytes_per_token = selfcheck.activated_bytes(llm.model)
    floor = bandwidth / bytes_per_token
    decode = selfcheck.decode_rate(llm, prompts[0][:32], args.tokens)
    prefill = selfcheck.prefill_rate(llm, prompts[0])
    result = {
        "model": args.model,
        "weights": llm.precision,
        "kernels": llm.kernels,
        "largest_logit_difference_in_std": difference.largest,
        "typical_logit_difference_in_std": difference.typical,
        "positions": difference.positions,
        "same_choice": difference.same_choice,
        "decode_tokens_per_second": round(decode, 1),
        "prefill_tokens_per_second": round(prefill, 1),
        "activated_megabytes_per_token": round(bytes_per_token / 1e6, 2),
        "memory_gigabytes_per_second": round(bandwidth / 1e9, 1),
        "bandwidth_floor_tokens_per_second": round(floor, 1),
        "share_of_floor": round(decode / floor, 3),
    }
    paged = llm.engine.runner.paged
    narrow = paged.pools[0].latent.dtype != torch.float32 or (paged.kernels == "torch" and paged.dtype != torch.float32)
    fine = difference.typical <= (TOLERANCE_NARROW if narrow else TOLERANCE)
    if args.json:
        lost = {key: None for key, value in result.items() if isinstance(value, float) and not math.isfinite(value)}
        print(json.dumps(result | lost | {"ok": fine}))
    else:
        _print(result, fine)
    return 0 if fine else 1


def _reference(args: Args, llm: LLM) -> DeepseekV3:
    from fathom.models.load import load_model

    needed, free = 4 * llm.model.num_parameters().with_mtp, free_memory(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"the FP32 reference needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; check a checkpoint "
            "of the same family that fits"
        )
    return load_model(args.model, "float32", "cpu")


def _print(result: dict[str, object], fine: bool) -> None:
    table = Table(show_header=False, box=None)
    for key, value in result.items():
        shown = f"{value:.2e}" if "difference" in key else f"{value:,}" if isinstance(value, float) else str(value)
        table.add_row(key.replace("_", " "), shown)
    console = Console()
    console.print(table)
    console.print("ok: the fast path computes the model" if fine else "NOT OK: the difference is larger than rounding")
