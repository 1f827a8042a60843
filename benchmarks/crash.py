"""Kill a training run at random moments, resume it on another number of ranks, and compare where it ends.

    python benchmarks/crash.py [--kills 20] [--seed 0]

A small DeepSeek-V3 with MTP is trained for 180 steps with a checkpoint every third step. In each life torchrun starts
1, 2 or 4 processes in some layout, and after a random time all of them get SIGKILL. Whatever is on the disk then must
be whole checkpoints only. Two runs are killed so:
  same     always two processes in the same layout: the final weights must equal an uninterrupted run's bit for bit
  other    another layout in every life: they must equal it within a tolerance (sums have another order)
The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from fathom.checkpoint.store import Store, read_whole

RECIPE = """
preset = "minnow"
[model]
vocab_size = 512
hidden_size = 64
intermediate_size = 96
moe_intermediate_size = 32
num_hidden_layers = 3
n_routed_experts = 8
num_experts_per_tok = 2
q_lora_rank = 32
kv_lora_rank = 32
qk_nope_head_dim = 16
qk_rope_head_dim = 16
v_head_dim = 16
max_position_embeddings = 128
initializer_range = 0.05
[data]
train = "{folder}/train.jsonl"
tokenizer = "{folder}/tokenizer"
batch_rows = 16
micro_rows = 2
sequence_length = 64
[optim]
peak_lr = 5e-4
warmup_steps = 5
[balance]
gamma = 0.001
[precision]
gemm = "fp32"
[run]
out = "{folder}/run"
steps = {steps}
checkpoint_every = 3
log_every = 1
"""
Layout = tuple[int, list[str]]
LAYOUTS: list[Layout] = [
    (1, []), (2, []), (2, ["--parallel.expert", "2"]), (4, ["--parallel.expert", "2"]),
    (2, ["--parallel.pipeline", "2"]),
    (2, ["--parallel.pipeline", "2", "--parallel.schedule", "zb1p"]),
    (4, ["--parallel.pipeline", "2", "--parallel.expert", "2"]),
]  # fmt: skip
SAME = LAYOUTS[1]


def prepare(folder: Path, steps: int) -> None:
    """Text, tokenizer, recipe."""
    from fathom.text.bpe import train_bpe

    words = random.Random(0)
    nouns, verbs = ["fish", "bird", "tree", "river", "fox", "moon"], ["sees", "finds", "likes", "follows"]
    lines = [
        " ".join(f"the {words.choice(nouns)} {words.choice(verbs)} the {words.choice(nouns)}." for _ in range(12))
        for _ in range(1500)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps({"source": "made", "text": x}) + "\n" for x in lines))
    train_bpe(lines, 310, folder / "tokenizer")
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder, steps=steps))


def start(folder: Path, out: str, layout: Layout) -> subprocess.Popen[bytes]:
    """One life, in a process group of its own."""
    ranks, flags = layout
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*torchrun, "-m", "fathom", "train", "pretrain", str(folder / "recipe.toml")]
    command += ["--run.out", str(folder / out), *flags]
    with open(folder / f"{out}.err", "ab") as err:
        return subprocess.Popen(command, stderr=err, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def finish(folder: Path, out: str, layout: Layout) -> None:
    """To the end."""
    if start(folder, out, layout).wait(timeout=600):
        sys.exit(f"{out} failed: {(folder / f'{out}.err').read_text()[-2000:]}")


def weights(folder: Path, out: str, steps: int) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint."""
    path = folder / out / "checkpoints" / f"step-{steps:08d}"
    return {name: tensor.clone() for name, tensor in read_whole(path)}


def kill_often(
    folder: Path, out: str, kills: int, draw: random.Random, layouts: list[tuple[int, list[str]]]
) -> list[int]:
    """Lives that end with SIGKILL, each checked; returns the newest whole checkpoint after each."""
    seen: list[int] = []
    for number in range(kills):
        process = start(folder, out, draw.choice(layouts))
        log = folder / out / "log.jsonl"
        before = log.stat().st_mtime if log.exists() else 0.0
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:  # until it makes steps, so that kills hit training
            if log.exists() and log.stat().st_mtime > before:
                break
            time.sleep(0.05)
        time.sleep(draw.uniform(0.0, 5.0))
        if process.poll() is not None:
            raise SystemExit(f"{out} ended by itself before kill {number + 1} of {kills}; raise --steps")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        subprocess.run(["pkill", "-KILL", "-f", str(folder / out)], check=False)
        store = Store(folder / out / "checkpoints", None, keep=2)
        steps = store.steps() if (folder / out / "checkpoints").exists() else []
        for step in steps:
            count = sum(1 for _ in read_whole(folder / out / "checkpoints" / f"step-{step:08d}"))  # checksums and all
            assert count, "an empty checkpoint"
        assert not seen or not seen[-1] or (steps and steps[-1] >= seen[-1]), f"lost: had {seen[-1]}, now {steps}"
        seen.append(steps[-1] if steps else 0)
        print(f"{out}: kill {number + 1}, newest whole checkpoint {seen[-1]}", flush=True)
    return seen


def main() -> None:
    """Run all, print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each of the two runs")
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, folder = random.Random(args.seed), Path(tempfile.mkdtemp(prefix="fathom-crash-"))
    prepare(folder, args.steps)
    finish(folder, "whole", SAME)
    whole = weights(folder, "whole", args.steps)
    same = kill_often(folder, "same", args.kills, draw, [SAME])
    finish(folder, "same", SAME)
    mine = weights(folder, "same", args.steps)
    different = [name for name in whole if not torch.equal(whole[name], mine[name])]
    other = kill_often(folder, "other", args.kills, draw, LAYOUTS)
    finish(folder, "other", draw.choice(LAYOUTS))
    theirs = weights(folder, "other", args.steps)
    model = [n for n in whole if n.startswith("model.")]
    worst = max(float((whole[n] - theirs[n]).norm() / whole[n].norm()) for n in model)
    print(
        f"same layout, {args.kills} kills: {len(different)} of {len(whole)} tensors differ from the uninterrupted run"
    )
    print(
        f"another layout each time, {args.kills} kills: weights differ by at most {worst:.1e} (norm of the difference)"
    )
    print(json.dumps({"kills": args.kills, "different": different, "worst": worst, "same": same, "other": other}))


if __name__ == "__main__":
    main()
