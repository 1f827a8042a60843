"""Auxiliary-loss-free balancing against an auxiliary loss and against none, and MTP against none, three seeds each.

    python benchmarks/balance.py [--out runs/balance-ablation] [--seeds 3] [--only NAME]

The report's Tables 4 and 5 and Figure 9 at our scale (recipes/balance-ablation.toml). Arms:
  bias   router bias, sequence-wise loss 1e-4          aux   auxiliary loss over the batch, 3e-3, no bias
  none   neither; no sequence-wise loss                mtp   bias, and one MTP depth (dropped for evaluation)
Measured on held-out text: bits per byte; the share of tokens that each expert gets of each source (up to 64 rows); of
their mean over sources MaxVio, the largest over the mean minus one, mean of layers; specialisation: how far the load of
experts on one source is from that on the others, as Jensen-Shannon divergence in bits, mean of layers. Runs that are
finished are not done again. Pictures and a table go to --out; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from fathom.checkpoint.reader import load_model
from fathom.evals.load import expert_load
from fathom.runtime import read_json, write_json
from fathom.text.dataset import open_streams
from fathom.train.config import TrainConfig
from fathom.train.evaluate import bits_per_byte, nats_of
from fathom.train.pretrain import pretrain, token_stream

RECIPE = Path(__file__).parents[1] / "recipes" / "balance-ablation.toml"
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "bias": {},
    "aux": {"balance": {"method": "aux"}},
    "none": {"balance": {"method": "none", "alpha": 0.0}},
    "mtp": {"model": {"num_nextn_predict_layers": 1}},
}
DRAWN = ("bias", "aux", "none")
ROWS = 64  # of held-out text per source, for loads


def config_of(arm: str, seed: int, out: Path) -> TrainConfig:
    """The recipe with an arm's changes."""
    recipe = TrainConfig.from_toml(RECIPE).to_dict()
    for table, values in ARMS[arm].items():
        recipe[table] = recipe[table] | values
    recipe["run"] |= {"out": str(out / f"{arm}-{seed}"), "seed": seed}
    config = TrainConfig.from_dict(recipe)
    shards: dict[str, Any] = {}
    for side in ("train", "heldout"):  # tokenised once for all runs
        text = recipe["data"][side]
        shards[side] = str(token_stream(config.data.tokenizer, config.model_config(), text, out / "tokens" / side))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **shards))


def loads_by_source(model: Any, heldout: Path, length: int) -> dict[str, np.ndarray[Any, Any]]:
    """Source -> share of each expert [layers, experts]."""
    out = {}
    for name, stream in open_streams(heldout).items():
        count = min(ROWS, len(stream) // length)
        rows = [
            torch.from_numpy(np.asarray(stream[i * length : (i + 1) * length]).astype(np.int64)) for i in range(count)
        ]
        if rows:
            load = expert_load(model, rows).double().numpy()
            out[name] = load / load.sum(1, keepdims=True)
    return out


def divergence(shares: list[np.ndarray[Any, Any]]) -> float:
    """Jensen-Shannon divergence of the sources' loads, bits, mean over layers."""
    stacked = np.stack(shares)  # [sources, layers, experts]

    def entropy(p: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return -(p * np.log2(np.maximum(p, 1e-12))).sum(-1)

    return float((entropy(stacked.mean(0)) - entropy(stacked).mean(0)).mean())


def measure(arm: str, seed: int, out: Path) -> dict[str, Any]:
    """Train (or take what is there) and measure."""
    config = config_of(arm, seed, out)
    done = Path(config.run.out) / "figures.json"
    if done.exists():
        return dict(read_json(done))
    model = load_model(pretrain(config), dtype="float32")
    heldout, length = Path(config.data.heldout), config.data.sequence_length
    shares = loads_by_source(model, heldout, length)
    total = np.mean(list(shares.values()), axis=0)
    figures = {
        "bits_per_byte": bits_per_byte(nats_of(model), heldout, rows=10**6, length=length),
        "max_violation": float((total.max(1) * total.shape[1] - 1).mean()),
        "dead": int((total * total.shape[1] < 0.01).sum()),
        "specialisation": divergence(list(shares.values())),
        "shares": {name: s.tolist() for name, s in shares.items()},
    }
    write_json(done, figures)
    return figures


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Figure 9 at our scale: relative load of every expert of one layer by source, first seed of each arm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arms = [arm for arm in DRAWN if arm in found]
    figure, axes = plt.subplots(len(arms), 1, figsize=(11, 2.6 * len(arms)), constrained_layout=True, squeeze=False)
    for axis, arm in zip(axes[:, 0], arms, strict=True):
        shares = {name: np.array(s)[-1] for name, s in found[arm][0]["shares"].items()}
        relative = np.stack(list(shares.values())) * len(next(iter(shares.values())))
        image = axis.imshow(relative, aspect="auto", cmap="viridis", vmin=0, vmax=6)
        axis.set_yticks(range(len(shares)), list(shares), fontsize=7)
        axis.set_title(f"{arm}: load of each expert of the last layer, in multiples of the mean", fontsize=9)
        figure.colorbar(image, ax=axis, pad=0.01)
    axes[-1, 0].set_xlabel("expert")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """All arms and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/balance-ablation"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=list(ARMS))
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(1, args.seeds + 1):
        for arm in (args.only,) if args.only else ARMS:
            found.setdefault(arm, []).append(measure(arm, seed, args.out))
    summary: dict[str, Any] = {"config": dataclasses.asdict(config_of("bias", 1, args.out))["run"]["steps"]}
    for arm, runs in found.items():
        line = f"{arm:<5}"
        for name in ("bits_per_byte", "max_violation", "specialisation", "dead"):
            values = [r[name]["mean"] if name == "bits_per_byte" else r[name] for r in runs]
            spread = stdev(values) if len(values) > 1 else 0.0
            summary.setdefault(arm, {})[name] = {"mean": mean(values), "std": spread, "values": values}
            line += f"  {name} {mean(values):.4f} +- {spread:.4f}"
        print(line)
    if set(found) & set(DRAWN):
        draw(found, args.out / "specialisation.png")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
