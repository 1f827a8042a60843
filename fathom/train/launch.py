"""Start a training run on the processes that there are: one, or all that torchrun started.

Ranks meet, agree on the layout, and watch each other (parallel/watch.py): a rank that dies, hangs or leaves is named by
one of the others within the time limit, and all of them end. A person's mistake is said once and ends all ranks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from fathom.parallel.launch import Place, join
from fathom.parallel.mesh import Mesh, make_mesh
from fathom.parallel.watch import LostRank
from fathom.runtime import UserError, locked
from fathom.train.config import TrainConfig
from fathom.train.parts import layout_of

Runner = Callable[[TrainConfig, Mesh | None, Callable[[], None]], Path]


def launch(config: TrainConfig, run: Runner) -> int:
    """Exit code: 0 done, 1 another rank is lost, 2 a person's mistake, 130 stopped (and saved)."""
    place = Place.from_env()
    if place.size == 1:
        layout_of(config, 1)  # a recipe for several processes, started as one
        with locked(Path(config.run.out), "another run"):
            print(f"done: {run(config, None, lambda: None)}", file=sys.stderr)
        return 0
    speaks = os.environ.get("RANK", "0") == "0"
    try:
        with join(place, timeout=config.parallel.timeout_s) as ranks, ExitStack() as held:

            def prepare() -> Mesh:
                if ranks.rank == 0:  # for all of them: the folder is the same
                    held.enter_context(locked(Path(config.run.out), "another run"))
                return make_mesh(layout_of(config, ranks.size), ranks.device, timeout=config.parallel.timeout_s)

            mesh = ranks.prepare("choice of layout", prepare)
            out = run(config, mesh, ranks.watch.tick)
            ranks.meet("end of the run")
    except LostRank as lost:
        if lost.speaks:
            print(f"fathom: error: {lost}", file=sys.stderr, flush=True)
        return 1
    except UserError as error:
        if speaks:
            print(f"fathom: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    if speaks:
        print(f"done: {out}", file=sys.stderr)
    return 0
