"""FP8 against BF16 over 10 million tokens (report appendix B.1), with block-wise gradients (B.2) and FP32 beside them.

    python benchmarks/precision.py [--out runs/fp8-ablation] [--arms bf16 fp8] [--draw-only]

recipes/fp8-ablation.toml, the same data, seed and weights in every arm; each takes 1.5 to 2 hours on one CPU core, goes
on where it was stopped, and is not done again once finished. What the arms have logged so far is drawn to
OUT/precision.png and printed: the relative difference of the smoothed loss from the BF16 arm's. The report smooths by
0.9 per step of 15 M tokens or more; ours have 8,192, so 0.98 is shown as well. FP32 is the control: it differs from
BF16 by rounding alone, so what separates those two is what chance does to two such runs. The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fathom.train.config import TrainConfig
from fathom.train.pretrain import pretrain
from fathom.train.report import Run, read_run, relative_difference

RECIPE = Path(__file__).parents[1] / "recipes" / "fp8-ablation.toml"
ARMS: dict[str, dict[str, str]] = {
    "bf16": {"gemm": "bf16"},
    "fp8": {"gemm": "fp8"},
    "block": {"gemm": "fp8", "gradients": "block"},
    "fp32": {"gemm": "fp32"},
}
TITLES = {"fp8": "FP8", "block": "FP8, block-wise gradients", "fp32": "FP32 (control)"}
SMOOTHINGS = (0.9, 0.98)
START = 0.02  # of the tokens: before, an average has hardly begun


def config_of(arm: str, out: Path) -> TrainConfig:
    """The recipe with an arm's precision."""
    recipe = TrainConfig.from_toml(RECIPE)
    return dataclasses.replace(
        recipe,
        precision=dataclasses.replace(recipe.precision, **ARMS[arm]),
        run=dataclasses.replace(recipe.run, out=str(out / arm)),
    )


def distance(base: Run, other: Run, smoothing: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(million tokens, percent) where both have logged, from START on."""
    pair = (dataclasses.replace(run, smoothing=smoothing) for run in (base, other))
    tokens, percent = relative_difference(*pair)
    late = tokens >= START * base.tokens[-1]
    return tokens[late] / 1e6, percent[late]


def figures(base: Run, other: Run) -> dict[str, Any]:
    """Largest and last difference for each smoothing; held-out figures at the last step that both evaluated."""
    out: dict[str, Any] = {}
    for smoothing in SMOOTHINGS:
        tokens, percent = distance(base, other, smoothing)
        most = int(abs(percent).argmax())
        out[str(smoothing)] = {
            "largest_percent": float(percent[most]), "at_million_tokens": float(tokens[most]),
            "last_percent": float(percent[-1]), "share_within_0.25": float((abs(percent) < 0.25).mean()),
        }  # fmt: skip
    out["million_tokens"] = float(distance(base, other, 0.9)[0][-1])
    (seen, mine), (also, theirs) = base.heldout(), other.heldout()
    if common := sorted(set(seen) & set(also)):
        last = common[-1]
        out["heldout"] = {
            "million_tokens": last / 1e6, "base": float(mine["mean"][list(seen).index(last)]),
            "other": float(theirs["mean"][list(also).index(last)]),
        }  # fmt: skip
    return out


def draw(base: Run, others: dict[str, Run], path: Path) -> None:
    """Losses, and each arm's difference from BF16 under both smoothings."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(13, 4.4), constrained_layout=True)
    colours = {"fp8": "#D55E00", "block": "#CC79A7", "fp32": "#009E73"}
    axes[0].plot(base.tokens / 1e6, base.smoothed(base.series("loss")), color="black", label="BF16")
    axes[1].axhspan(-0.25, 0.25, color="#009E73", alpha=0.1, linewidth=0, label="±0.25 %, the report's bound")
    axes[1].axhline(0, color="black", linewidth=1)
    for name, run in others.items():
        losses = run.smoothed(run.series("loss"))
        axes[0].plot(run.tokens / 1e6, losses, "--", color=colours[name], label=TITLES[name])
        for smoothing, width, alpha in ((0.9, 0.8, 0.5), (0.98, 2.0, 1.0)):
            label = f"{TITLES[name]}, smoothed by {smoothing:g}"
            x, y = distance(base, run, smoothing)
            axes[1].plot(x, y, color=colours[name], linewidth=width, alpha=alpha, label=label)
    axes[0].set(title="training loss, smoothed by 0.9", xlabel="million tokens", ylabel="nats per token")
    axes[1].set(title="difference from BF16", xlabel="million tokens", ylabel="%")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Train what is missing, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fp8-ablation"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["bf16", "fp8"])
    parser.add_argument("--draw-only", action="store_true")
    args = parser.parse_args()
    try:
        for arm in [] if args.draw_only else args.arms:
            pretrain(config_of(arm, args.out))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on, --draw-only shows what is there")
    runs = {arm: read_run(args.out / arm) for arm in ARMS if (args.out / arm / "log.jsonl").exists()}
    base = runs.pop("bf16", None)
    if base is None or not runs:
        parser.error(f"{args.out} has no bf16 arm and another one to compare")
    found = {name: figures(base, run) for name, run in runs.items()}
    for name, f in found.items():
        for smoothing in SMOOTHINGS:
            s = f[str(smoothing)]
            most = f"at most {abs(s['largest_percent']):.3f} % from BF16 (at {s['at_million_tokens']:.2f} M tokens)"
            last = f"{s['last_percent']:+.3f} % at {f['million_tokens']:.2f} M"
            share = f"within 0.25 % in {100 * s['share_within_0.25']:.1f} % of the steps"
            print(f"{TITLES[name]:<27} smoothed by {smoothing:<4}: {most}, {last}, {share}")
        if "heldout" in f:
            h = f["heldout"]
            both = f"held-out {h['other']:.4f}, BF16 {h['base']:.4f} bits per byte"
            print(f"{'':<27} {both} at {h['million_tokens']:.1f} M")
    draw(base, runs, args.out / "precision.png")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
