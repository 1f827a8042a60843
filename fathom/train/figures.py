"""What a model card quotes, measured on a checkpoint as its users load it, and the curves of its runs."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.checkpoint.reader import load_model
from fathom.engine.llm import LLM
from fathom.engine.params import SamplingParams
from fathom.evals.acceptance import greedy_acceptance
from fathom.evals.load import expert_load
from fathom.text.chat import ChatTemplate
from fathom.text.dataset import open_streams
from fathom.text.dialogues import read_dialogues
from fathom.text.tokenizer import Tokenizer
from fathom.train.evaluate import bits_per_byte, nats_of
from fathom.train.pretrain import token_stream

SAMPLE_PROMPTS = (
    "Hello! Who are you?",
    "Tell me a short story about a fox and a river.",
    "What is the capital of France?",
    "What is 17 plus 25?",
    "Why do people sleep?",
    "Name three animals that live in the sea.",
    "I feel sad today.",
    "What is the opposite of cold?",
    "Anna has 5 apples and buys 7 more. How many apples does she have?",
    "Write two sentences about the moon.",
)
CHATS = 60  # held-out prompts whose answers are drafted


def heldout_bits(checkpoint: Path, heldout: str, length: int) -> dict[str, float]:
    """Bits per byte of held-out documents (JSONL) by source, in pieces of `length` tokens of the model's own tokenizer.

    All of them, but for the last, incomplete piece of a source.
    """
    model = load_model(checkpoint, dtype="float32")
    with tempfile.TemporaryDirectory() as scratch:
        streams = token_stream(checkpoint, model.config, heldout, Path(scratch))
        return bits_per_byte(nats_of(model), streams, rows=10**6, length=length)


def measure(folder: Path, heldout: str, chats: str, length: int) -> dict[str, Any]:
    """Bits per byte, MTP acceptance on chats and on documents, expert load, answers to SAMPLE_PROMPTS."""
    model = load_model(folder, dtype="float32")
    tokenizer, template = Tokenizer.from_pretrained(folder), ChatTemplate.from_pretrained(folder)
    talks = [talk for _, talk in read_dialogues(chats).rows[:CHATS]]
    prompts = [template.encode(tokenizer, talk.messages[:-1], tools=talk.tools) for talk in talks]
    with tempfile.TemporaryDirectory() as scratch:
        streams = token_stream(folder, model.config, heldout, Path(scratch))
        rows = [torch.from_numpy(stream[:length].astype(np.int64)) for stream in open_streams(streams).values()]
        bits = bits_per_byte(nats_of(model), streams, rows=10**6, length=length)
    load = expert_load(model, rows)
    llm = LLM.from_parts(model, tokenizer, template)
    greedy = SamplingParams(temperature=0.0, max_tokens=120)
    return {
        "bits": bits,
        "acceptance_chat": greedy_acceptance(model, prompts, max_tokens=80, eos_ids=model.config.eos_token_id),
        "acceptance_text": greedy_acceptance(model, [row[:32].tolist() for row in rows], max_tokens=96),
        "load": [round(float(r), 2) for r in load.max(1).values / load.float().mean(1)],
        "samples": [(p, llm.chat([{"role": "user", "content": p}], greedy)[0].outputs[0].text) for p in SAMPLE_PROMPTS],
    }


def draw_curves(pretraining: list[dict[str, Any]], sft: list[dict[str, Any]], path: Path) -> None:
    """Loss, held-out bits per byte and expert load of pretraining; loss of SFT. From the runs' logs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pre = pretraining
    figure, axes = plt.subplots(1, 4, figsize=(18, 4), constrained_layout=True)
    tokens = [r["tokens"] / 1e6 for r in pre]
    axes[0].plot(tokens, [r["loss"] for r in pre], label="next token")
    mtp = [r["mtp_loss"][0] if r["mtp_loss"] else math.nan for r in pre]  # nothing where its weight is 0
    axes[0].plot(tokens, mtp, label="MTP (second next)", alpha=0.7)
    axes[0].set(title="pretraining loss (nats per token)", xlabel="million tokens")
    axes[0].legend()
    held = [r for r in pre if "heldout" in r]
    for source in held[-1]["heldout"]:
        axes[1].plot(
            [r["tokens"] / 1e6 for r in held], [r["heldout"][source] for r in held], label=source,
            linewidth=3 if source == "mean" else 1,
        )  # fmt: skip
    axes[1].set(title="held-out bits per byte", xlabel="million tokens")
    axes[1].legend(fontsize=7)
    loads = np.array([r["load_max_over_mean"] for r in pre])
    depths = max(len(r["mtp_loss"]) for r in pre)
    names = [f"MoE layer {i + 1}" for i in range(loads.shape[1] - depths)] + [f"MTP {d + 1}" for d in range(depths)]
    for layer, name in enumerate(names):
        axes[2].plot(tokens, loads[:, layer], linewidth=1, label=name)
    axes[2].set(title="expert load, max / mean of a batch", xlabel="million tokens", ylim=(1, None))
    axes[2].legend(fontsize=7)
    axes[3].plot([r["tokens"] / 1e6 for r in sft], [r["loss"] for r in sft], label="training (mixed-in text included)")
    held = [r for r in sft if "heldout" in r]
    answers = [r["heldout"]["mean"] for r in held]
    axes[3].plot([r["tokens"] / 1e6 for r in held], answers, "o-", label="held-out answers")
    axes[3].set(title="SFT loss (nats per trained token)", xlabel="million tokens")
    axes[3].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=70, format="png")
    plt.close(figure)
