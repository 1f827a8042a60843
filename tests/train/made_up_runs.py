"""Run folders with logs that look like real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def make_run(
    folder: Path, *, steps: int = 400, of: int | None = None, layers: int = 6, experts: int = 32, seed: int = 0,
    evaluations: int = 8, spikes: tuple[int, ...] = (), lr: float = 2e-3, offset: float = 0.0, ramp: bool = False,
    sources: tuple[str, ...] = ("wikipedia", "austen", "wordnet", "dialogues"), dead: int = 2,
) -> Path:  # fmt: skip
    """`steps` records of a run of `of` steps."""
    of = of or steps
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    config = {
        "preset": "minnow", "model": {}, "data": {"batch_rows": 16, "sequence_length": 512},
        "optim": {"peak_lr": lr, "clip_norm": 1.0}, "run": {"steps": of, "out": str(folder), "seed": seed},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tokens, lines = 0, []
    skew = np.abs(random.normal(1, 0.9, (layers, experts))) ** 1.6 + 0.02
    for step in range(1, steps + 1):
        rows = 16 if not ramp else 4 + 4 * min(3, 4 * step // of)
        tokens += rows * 512
        done = step / of
        loss = 2.3 + offset + 5.2 * np.exp(-9 * done) + 1.0 * np.exp(-1.5 * done) + random.normal(0, 0.05)
        calm = np.exp(-4 * done)
        load = skew**calm * random.lognormal(0, 0.12, (layers, experts))
        if dead and done < 0.6:
            load[0, 3 : 3 + dead] = 0
        load /= load.mean(1, keepdims=True)
        spike = step in spikes
        rate = lr * min(1, step / 20) * (1 if done < 0.6 else 0.05 + 0.475 * (1 + np.cos(np.pi * (done - 0.6) / 0.4)))
        record: dict[str, Any] = {
            "step": step, "tokens": tokens, "loss": float(loss + 4 * spike), "mtp_loss": [float(loss * 1.13 + 0.25)],
            "lr": float(rate), "grad_norm": float((0.5 + 2 * calm) * random.lognormal(0, 0.25) * (40 if spike else 1)),
            "load_max_over_mean": [float(x) for x in load.max(1)], "dead_experts": [int(x) for x in (load == 0).sum(1)],
            "tokens_per_second": float(8400 + random.normal(0, 250) - 2500 * (step % 97 == 0)),
            "flops_share": float(0.44 + random.normal(0, 0.012)), "rows": rows, "gamma": 0.005, "mtp_lambda": 0.3,
        }  # fmt: skip
        if spike:
            record["skipped"] = True
        if evaluations and step % max(steps // evaluations, 1) == 0:
            record["load"] = load.round(4).tolist()
            held = {n: float(1.1 + 0.18 * k + 2.2 * np.exp(-5 * done) + offset / 3) for k, n in enumerate(sources)}
            record["heldout"] = held | {"mean": float(np.mean(list(held.values())))}
        lines.append(json.dumps(record) + "\n")
    (folder / "log.jsonl").write_text("".join(lines))
    return folder
