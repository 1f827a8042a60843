"""How often a run reads its natural text: repetition up to about four times costs little, more of it teaches by heart.

    epochs(source) = tokens of the run * (1 - generated_share) * the source's share / the source's tokens

(The limit is that of Muennighoff et al., 2023: data seen up to four times are worth nearly as much as new data.)
Generated text is drawn anew and has no epochs.
"""

from __future__ import annotations

import math
from pathlib import Path

from fathom.runtime import UserError
from fathom.text.packed import PackedDataset
from fathom.text.shards import open_streams, stored_weights
from fathom.train.config import TrainConfig


def epochs(config: TrainConfig, folder: Path, tokens: int) -> dict[str, float]:
    """Of each source of a token folder, in a run of so many tokens."""
    d, streams = config.data, open_streams(folder)
    weights = d.weights or stored_weights(folder) or None
    data = PackedDataset(streams, rows=1, length=d.sequence_length, seed=config.run.seed, weights=weights)
    natural = tokens * (1 - d.generated_share)
    return {n: natural * float(s) / len(streams[n]) for n, s in zip(data.names, data.shares, strict=True)}


def check_epochs(config: TrainConfig, folder: Path, tokens: int) -> None:
    """UserError when a source would be read more often than data.max_epochs (0: no limit)."""
    limit = config.data.max_epochs
    if not limit:
        return
    found = epochs(config, folder, tokens)
    name = max(found, key=lambda n: found[n])
    if found[name] <= limit:
        return
    ratio, steps, share = limit / found[name], config.run.steps, config.data.generated_share
    enough = math.ceil(1000 * (1 - (1 - share) * ratio)) / 1000
    raise UserError(
        f"data.max_epochs is {limit:g}, but {steps} steps ({tokens / 1e6:.1f} M tokens) would read {name} "
        f"{found[name]:.2f} times; lower data.weights.{name}, raise data.generated_share from {share:g} to "
        f"{enough:g}, or take no more than {math.floor(steps * ratio)} steps"
    )
