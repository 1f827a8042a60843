"""What a rank of a distillation does."""

from __future__ import annotations

from typing import Any

import torch

from fathom.parallel.launch import Place, join
from fathom.parallel.mesh import make_mesh
from fathom.train import teacher_cache
from fathom.train.config import TrainConfig
from fathom.train.distill import distill
from fathom.train.parts import layout_of

PART_TOKENS = 64  # so that a tiny run's cache has several parts


def distill_body(recipe: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    teacher_cache.PART_TOKENS = PART_TOKENS
    config = TrainConfig.from_dict(recipe)
    with join(Place.from_env(), timeout=60) as ranks:
        mesh = make_mesh(layout_of(config, ranks.size), ranks.device, timeout=60)
        distill(config, mesh, ranks.watch.tick)
        ranks.meet("end of the run")
