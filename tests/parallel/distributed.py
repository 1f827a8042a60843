"""Real processes on one machine for tests: the same body on every rank, over gloo, with a time limit.

The processes come from a fork server that has torch imported already, so one costs a fraction of a second. What a rank
prints goes to files, for a process that ends in the middle cannot hand anything back; what its body returns, too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "fathom.demo.generate"])


@dataclass(frozen=True)
class Finished:
    """How one rank ended."""

    code: int
    out: str
    err: str
    value: Any


def free_port() -> int:
    """A port that nobody holds, below those that the system hands out: no connection gets it before rank 0 does."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run(
    size: int,
    body: Callable[..., Any],
    *args: Any,
    folder: Path,
    only: Sequence[int] | None = None,
    stdin: str = "",
    limit: float = 90.0,
) -> dict[int, Finished]:
    """Start `body(*args)` on the ranks `only` of `size` (default all) with torchrun's environment; how each ended.

    The exit code is what the body returns if that is an int, else 0; 1 after an exception. Ranks that are still there
    after `limit` seconds are killed and the test fails.
    """
    port, ranks = free_port(), list(range(size) if only is None else only)
    for rank in ranks:
        (folder / f"in{rank}").write_text(stdin)
    started = {
        rank: _CONTEXT.Process(target=_rank, args=(rank, size, port, str(folder), body, args), daemon=True)
        for rank in ranks
    }
    for process in started.values():
        process.start()
    end = time.monotonic() + limit
    for process in started.values():
        process.join(max(end - time.monotonic(), 0.0))
    hanging = [rank for rank, process in started.items() if process.exitcode is None]
    for rank in hanging:
        started[rank].kill()
        started[rank].join()
    ended = {rank: _read(folder, rank, process.exitcode or 0) for rank, process in started.items()}
    assert not hanging, f"ranks {hanging} were still running after {limit} s: {ended}"
    return ended


def _read(folder: Path, rank: int, code: int) -> Finished:
    value = folder / f"value{rank}"
    out, err = ((folder / f"{name}{rank}").read_bytes().decode() for name in ("out", "err"))
    return Finished(code, out, err, pickle.loads(value.read_bytes()) if value.exists() else None)


def _rank(rank: int, size: int, port: int, folder: str, body: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch

    for name, number in (("in", 0), ("out", 1), ("err", 2)):
        flags = os.O_RDONLY if name == "in" else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(f"{folder}/{name}{rank}", flags, 0o600), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  multiprocessing gave this process an empty one
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    code = 1
    try:
        value = body(*args)
        Path(f"{folder}/value{rank}").write_bytes(pickle.dumps(value))
        code = value if isinstance(value, int) else 0
    except Exception:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
