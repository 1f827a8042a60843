"""`fathom train release RECIPE`: a trained run becomes a checkpoint to ship, with a card that says what it is.

    SFT export (FP32) -> FP8 blocks in Hugging Face layout, tokenizer, chat template, generation settings
    reloaded as shipped -> held-out bits per byte, MTP acceptance, expert load, samples -> README.md and curves.png

The figures are those of the FP8 checkpoint as a user loads it, not of the master weights.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from fathom.checkpoint.reader import load_model
from fathom.checkpoint.writer import save_model
from fathom.engine.llm import LLM
from fathom.engine.params import SamplingParams
from fathom.evals.acceptance import greedy_acceptance
from fathom.evals.load import expert_load
from fathom.model.cost import parameters
from fathom.model.transformer import DeepseekV3
from fathom.runtime import UserError, atomic_write, read_json, write_json, write_text
from fathom.text.chat import BUILTIN, ChatTemplate
from fathom.text.dataset import open_streams, read_jsonl
from fathom.text.tokenizer import Tokenizer
from fathom.train.config import TrainConfig
from fathom.train.evaluate import bits_per_byte, nats_of

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


def release(config: TrainConfig, folder: Path) -> Path:
    """Write the model of the finished SFT run `config` to `folder` with its card; returns `folder`."""
    sft_run = Path(config.run.out)
    pretrain_run = Path(config.run.init_from).parent
    if not (sft_run / "export" / "config.json").exists():
        raise UserError(f"{sft_run / 'export'} does not exist; finish `fathom train sft` first")
    master = load_model(sft_run / "export", dtype="float32")
    save_model(master, folder, dtype="fp8", mtp_copies=False, side_files_from=sft_run / "export", overwrite=True)
    template = Path(__file__).parents[1] / "text" / "templates" / BUILTIN[config.data.template]
    shutil.copyfile(template, folder / "chat_template.jinja")
    m = master.config
    settings = read_json(folder / "tokenizer_config.json") | {"model_max_length": m.max_position_embeddings}
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "generation_config.json", {
        "bos_token_id": m.bos_token_id, "eos_token_id": m.eos_token_id[0], "pad_token_id": m.pad_token_id,
        "do_sample": True, "temperature": 0.6, "top_p": 0.95,
    })  # fmt: skip
    figures = measure(load_model(folder, dtype="float32"), config, pretrain_run, folder)
    with atomic_write(folder / "curves.png") as temporary:
        draw_curves(pretrain_run, sft_run, temporary)
    write_text(folder / "README.md", card(config, pretrain_run, figures))
    return folder


def measure(model: DeepseekV3, config: TrainConfig, pretrain_run: Path, folder: Path) -> dict[str, Any]:
    """Everything the card quotes, from the shipped weights."""
    tokenizer = Tokenizer.from_pretrained(folder)
    template = ChatTemplate.from_pretrained(folder)
    heldout = pretrain_run / "tokens" / "heldout"
    length = model.config.max_position_embeddings
    prompts = []
    for record in read_jsonl(config.data.heldout):
        prompts.append(template.encode(tokenizer, record["messages"][:-1]))
        if len(prompts) == 60:
            break
    eos = model.config.eos_token_id
    chat = greedy_acceptance(model, prompts, max_tokens=80, eos_ids=eos)
    rows = [torch.from_numpy(stream[:length].astype(np.int64)) for stream in open_streams(heldout).values()]
    texts = greedy_acceptance(model, [row[:32].tolist() for row in rows], max_tokens=96)
    load = expert_load(model, rows)
    ratio = load.max(1).values / load.float().mean(1)
    llm = LLM.from_parts(model, tokenizer, template)
    greedy = SamplingParams(temperature=0.0, max_tokens=120)
    samples = [(p, llm.chat([{"role": "user", "content": p}], greedy)[0].outputs[0].text) for p in SAMPLE_PROMPTS]
    pretrained = load_model(pretrain_run / "export", dtype="float32")
    return {
        "before": bits_per_byte(nats_of(pretrained), heldout, rows=10**6, length=length),
        "after": bits_per_byte(nats_of(model), heldout, rows=10**6, length=length),
        "acceptance_chat": chat,
        "acceptance_text": texts,
        "load": [round(float(r), 2) for r in ratio],
        "samples": samples,
    }


def run_log(run: Path) -> list[dict[str, Any]]:
    """The records of a run."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def draw_curves(pretrain_run: Path, sft_run: Path, path: Path) -> None:
    """Loss, held-out bits per byte, expert load and learning rate of pretraining; loss of SFT."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pre, sft = run_log(pretrain_run), run_log(sft_run)
    figure, axes = plt.subplots(1, 4, figsize=(18, 4), constrained_layout=True)
    tokens = [r["tokens"] / 1e6 for r in pre]
    axes[0].plot(tokens, [r["loss"] for r in pre], label="next token")
    axes[0].plot(tokens, [r["mtp_loss"][0] for r in pre], label="MTP (second next)", alpha=0.7)
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
    for layer in range(loads.shape[1]):
        axes[2].plot(tokens, loads[:, layer], linewidth=1, label=f"MoE layer {layer + 1}")
    axes[2].set(title="expert load, max / mean of a batch", xlabel="million tokens", ylim=(1, None))
    axes[2].legend(fontsize=7)
    axes[3].plot([r["tokens"] / 1e6 for r in sft], [r["loss"] for r in sft], label="training")
    held = [r for r in sft if "heldout" in r]
    axes[3].plot([r["tokens"] / 1e6 for r in held], [r["heldout"]["mean"] for r in held], "o-", label="held-out")
    axes[3].set(title="SFT loss (nats per answer token)", xlabel="million tokens")
    axes[3].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=70, format="png")
    plt.close(figure)


def card(config: TrainConfig, pretrain_run: Path, figures: dict[str, Any]) -> str:
    """README.md of the model: what it is, what it saw, what it can do."""
    pretrain = TrainConfig.from_dict(read_json(pretrain_run / "config.json"))
    logs = run_log(pretrain_run), run_log(Path(config.run.out))
    rates = [float(np.median([r["tokens_per_second"] for r in log])) for log in logs]
    seconds = sum(log[-1]["tokens"] / rate for log, rate in zip(logs, rates, strict=True))
    sources = read_json(Path(pretrain.data.train).parent / "sources.json")
    template = (Path(__file__).parent / "card.md.jinja").read_text(encoding="utf-8")
    text: str = (
        jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)
        .from_string(template)
        .render(
            config=config.model_config(),
            count=parameters(config.model_config()),
            pretrain=pretrain,
            pretrain_end=logs[0][-1],
            sft_end=logs[1][-1],
            o=pretrain.optim,
            b=pretrain.balance,
            minutes=math.ceil(seconds / 60),
            speed=f"{rates[0]:,.0f}",
            millions=lambda n: f"{n / 1e6:.1f}",
            sources={n: {"skipped": False, "also_evaluation": False, "package": ""} | s for n, s in sources.items()},
            skipped=", ".join(n for n, s in sources.items() if s.get("skipped")),
            **figures,
        )
    )
    return text
