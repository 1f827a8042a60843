"""Write tests/golden/train_loss.json anew:   python tests/train/make_golden.py

Only after a change that is meant to change training; say in the commit message why.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from tiny_run import RUN, make_config, make_trainer

from fathom.runtime import write_json

GOLDEN = Path(__file__).parents[1] / "golden" / "train_loss.json"
STEPS = 30
CURVES = ("loss", "mtp_loss", "grad_norm", "load_max_over_mean")


def curves(changes: dict[str, Any] | None = None, steps: int = STEPS) -> dict[str, list[Any]]:
    """The first steps of the tiny run of tiny_run.py."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as out:
        trainer = make_trainer(make_config(out, changes))
        trainer.model.train()
        records = [trainer.step() for _ in range(steps)]
        trainer.store.wait()  # it writes into the folder that goes away
    return {name: [r[name] for r in records] for name in CURVES}


if __name__ == "__main__":
    origin = {"made by": "tests/train/make_golden.py", "run": RUN, "torch": torch.__version__, "precision": "FP32"}
    write_json(GOLDEN, {"origin": origin, **curves()})
