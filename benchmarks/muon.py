"""Muon against AdamW: minnow from the same start on the same tokens, each with its own peak learning rate.

    python benchmarks/muon.py [--recipe FILE] [--out runs/muon] [--arms adamw:2e-3 muon:2e-3 ...] [--tokens 2000000]

The recipe is minnow's (recipes/minnow-pretrain.toml) with a warm-up of 80 steps and a cosine over the last 30 %, so
that both end as a run ends. Measured: held-out bits per byte at the quarters of the run; tokens per second (median);
the share of a step that the optimizer takes, and its memory. Weight decay, clipping, data order and starting weights
are the same. Runs that are finished are not done again. A table, then one JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fathom.runtime import keep_freed_memory, read_json, write_json
from fathom.train.config import TrainConfig
from fathom.train.evaluate import Nats, bits_per_byte
from fathom.train.loop import Trainer
from fathom.train.pretrain import batches, open_tokenizer, start_model, token_stream

RECIPE = Path(__file__).parents[1] / "recipes" / "minnow-pretrain.toml"
DEFAULT = ["adamw:2e-3", "muon:2e-3", "muon:5e-3"]


def config_of(arm: str, recipe: Path, out: Path, tokens: int) -> TrainConfig:
    """`arm`: kind and peak learning rate, "muon:5e-3"; the rest is the recipe's, for a run of so many tokens."""
    kind, lr = arm.split(":")
    tables = TrainConfig.from_toml(recipe).to_dict()
    data, optim, run = (tables[name] for name in ("data", "optim", "run"))
    data |= {"long_length": 0, "long_fraction": 0.1, "ramp_from_rows": 0, "ramp_tokens": 0, "ramp_rows_step": 0}
    steps = tokens // (data["batch_rows"] * data["sequence_length"])
    optim |= {"kind": kind, "peak_lr": float(lr), "final_lr": float(lr) / 20, "decay_start": 0, "tail": []}
    optim |= {"warmup_steps": min(steps // 5, 80), "decay_fraction": 0.3}
    if kind == "adamw":
        optim |= {"momentum": 0.95, "newton_schulz": "auto"}
    quarter = max(steps // 4, 1)
    run |= {"out": str(out / arm.replace(":", "-")), "steps": steps, "eval_every": quarter, "log_every": 5}
    run |= {"checkpoint_every": quarter, "keep_checkpoints": 1}
    return TrainConfig.from_dict(tables)


def measure(config: TrainConfig, shards: Path) -> dict[str, Any]:
    """Train (or take what is there); figures of the run."""
    out, d = Path(config.run.out), config.data
    if (out / "figures.json").exists():
        return dict(read_json(out / "figures.json"))
    model = start_model(config)
    tokenizer = open_tokenizer(config, model.config)
    train = token_stream(d.tokenizer, model.config, d.train, shards / "train")
    heldout = token_stream(d.tokenizer, model.config, d.heldout, shards / "heldout")

    def evaluate(nats: Nats) -> dict[str, float]:
        return bits_per_byte(nats, heldout, rows=config.run.eval_rows, length=d.sequence_length)

    spent: list[float] = []
    with batches(config, train, tokenizer, 1) as data:
        trainer = Trainer(config, model, data, evaluate)
        step = trainer.zero.step

        def timed(**how: Any) -> None:
            started = time.perf_counter()
            step(**how)
            spent.append(time.perf_counter() - started)

        trainer.zero.step = timed  # type: ignore[method-assign]
        trainer.train()
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    rates = [r["tokens_per_second"] for r in records]
    step_tokens = d.batch_rows * d.sequence_length
    figures = {
        "tokens": records[-1]["tokens"],
        "heldout": {r["tokens"]: r["heldout"]["mean"] for r in records if "heldout" in r},
        "loss": records[-1]["loss"],
        "tokens_per_second": median(rates),
        "optimizer_seconds": median(spent),
        "optimizer_share": median(spent) * median(rates) / step_tokens,
        "optimizer_bytes": sum(p.data.nbytes for p in trainer.pieces() if p.name.startswith("optim.")),
        "max_logit": max(r.get("max_logit", 0.0) for r in records),
    }
    write_json(out / "figures.json", figures)
    return figures


def main() -> None:
    """All arms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--out", type=Path, default=Path("runs/muon"))
    parser.add_argument("--arms", nargs="+", default=DEFAULT)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    args = parser.parse_args()
    keep_freed_memory()
    found: dict[str, dict[str, Any]] = {}
    for arm in args.arms:
        found[arm] = measure(config_of(arm, args.recipe, args.out, args.tokens), args.out / "tokens")
        f = found[arm]
        curve = "  ".join(f"{int(tokens) / 1e6:.2f} M: {bits:.4f}" for tokens, bits in f["heldout"].items())
        print(
            f"{arm:<12} bits per byte at {curve}   {f['tokens_per_second']:,.0f} tokens/s   "
            f"optimizer {f['optimizer_seconds']:.2f} s = {f['optimizer_share']:.0%} of a step, "
            f"{f['optimizer_bytes'] / 2**20:.0f} MiB   largest logit {f['max_logit']:.0f}",
            flush=True,
        )
    print(json.dumps({"threads": torch.get_num_threads(), "arms": found}))


if __name__ == "__main__":
    main()
