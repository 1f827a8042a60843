"""A run of a few seconds: a tiny V3 on a made-up language, and lives of it that end badly.

    python tests/train/tiny_run.py OUT kill:17 save:30 term:33 full:40

runs the same run in one process after another, each started from what the one before left in OUT, and prints how each
ended (negative: killed by that signal). kill:N dies at the start of step N, save:N in the middle of writing the
checkpoint of step N, term:N receives SIGTERM during step N, full:N can write no large file from step N on.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.checkpoint import store
from fathom.model.transformer import DeepseekV3
from fathom.parallel.mesh import Mesh
from fathom.runtime import UserError
from fathom.text.dataset import Batch, PackedDataset
from fathom.train.config import TrainConfig
from fathom.train.loop import Trainer, ramp_of

VOCAB, STEPS = 128, 50
MODEL: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=3,
    num_nextn_predict_layers=1, num_attention_heads=2, n_routed_experts=8, num_experts_per_tok=2, n_group=4,
    topk_group=2, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
    v_head_dim=8, max_position_embeddings=64, initializer_range=0.1,
)  # fmt: skip
RUN: dict[str, dict[str, Any]] = {
    "data": {"batch_rows": 8, "micro_rows": 4, "sequence_length": 16},
    "optim": {"peak_lr": 5e-3, "final_lr": 1e-4, "warmup_steps": 5, "decay_fraction": 0.5},
    "balance": {"gamma": 0.01, "alpha": 0.01},
    "precision": {"gemm": "fp32"},
    "run": {"steps": STEPS, "seed": 3, "checkpoint_every": 10, "log_every": 1},
}


def make_config(out: Path | str, changes: dict[str, Any] | None = None, **model: Any) -> TrainConfig:
    """The tiny run in folder `out`; `changes` by dotted key."""
    recipe: dict[str, Any] = {"model": MODEL | model} | {name: dict(table) for name, table in RUN.items()}
    recipe["run"]["out"] = str(out)
    for key, value in (changes or {}).items():
        table, name = key.split(".")
        recipe.setdefault(table, {})[name] = value
    return TrainConfig.from_dict(recipe)


def make_model(config: TrainConfig) -> DeepseekV3:
    return DeepseekV3(config.model_config()).init_weights(torch.Generator().manual_seed(config.run.seed))


def language(tokens: int, seed: int) -> np.ndarray[Any, Any]:
    """A stream in which every token has four likely successors: something to learn."""
    random = np.random.Generator(np.random.PCG64(seed))
    successors = np.random.Generator(np.random.PCG64(0)).integers(0, VOCAB, (VOCAB, 4))
    out = np.zeros(tokens, dtype=np.uint16)
    for i in range(1, tokens):
        out[i] = successors[out[i - 1], random.integers(4)]
    return out


def make_data(config: TrainConfig, data_ranks: int = 1) -> PackedDataset:
    streams = {"first": language(4000, 1), "second": language(1500, 2)}
    ramp = ramp_of(config, data_ranks)
    return PackedDataset(streams, rows=ramp, length=config.data.sequence_length, seed=config.run.seed)


def make_trainer(config: TrainConfig, mesh: Mesh | None = None) -> Trainer:
    data = make_data(config, mesh.data.size if mesh else 1)
    return Trainer(config, make_model(config), data, mesh=mesh)


@dataclasses.dataclass
class FatalData:
    """The run's data, and an event when the batch of `step` is asked for."""

    data: PackedDataset
    event: str
    step: int

    def batch(self, step: int) -> Batch:
        if step == self.step and self.event == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        elif step == self.step and self.event != "save":
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[self.event])
        return self.data.batch(step)


def live(out: str, event: str, step: int) -> int:
    """One life; returns its exit code, if it comes to that."""
    trainer = make_trainer(make_config(out))
    trainer.data = FatalData(make_data(trainer.config), event, step)
    if event == "save":
        write_index = store.write_index

        def die(folder: Path, index: Any) -> None:
            if index.step == step:
                os.truncate(next(folder.glob("*.safetensors")), 1000)
                os.kill(os.getpid(), signal.SIGKILL)
            write_index(folder, index)

        store.write_index = die  # type: ignore[assignment]
    try:
        trainer.train()
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        print(error, flush=True)
        return 2
    return 0


def main(out: str, lives: list[str]) -> None:
    torch.set_num_threads(1)
    for life in lives:
        event, step = life.split(":")
        child = os.fork()  # nothing was computed in this process yet
        if child == 0:
            os._exit(live(out, event, int(step)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
