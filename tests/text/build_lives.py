"""Builds that die by SIGKILL, each continuing what the one before left.

    python tests/text/build_lives.py INPUT OUT 3 9 14 ...

Each life dies when it is about to wait for the disk for the so-manieth time: in the middle of a commit, after shards
grew and before or after state.json was replaced. One more life is let live. Prints how each ended (-9: killed).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from fathom.text import build as module
from fathom.text.build import build
from fathom.text.ingest import find
from fathom.text.stages import Plan, Vocabulary

BOS, EOS = 0, 1


def encode(texts: list[str]) -> list[list[int]]:
    return [[10 + byte for byte in text.encode()] for text in texts]


def plan(path: str) -> Plan:
    return Plan(find([path]), near=0.8, heldout_percent=20, shard_tokens=20_000)


def die_at(count: int) -> None:
    """SIGKILL in place of the count-th fsync."""
    fsync, left = os.fsync, [count]

    def deadly(descriptor: int) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = deadly


def main(path: str, out: str, lives: list[int]) -> None:
    module.CHUNK_DOCUMENTS = 16  # commits come between chunks
    for count in [*lives, 0]:
        child = os.fork()  # nothing was computed in this process yet
        if child == 0:
            die_at(count)
            meta = build(Path(out), plan(path), Vocabulary(encode, BOS, EOS, 300), commit_bytes=4000)
            os._exit(0 if meta["sources"] else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [int(life) for life in sys.argv[3:]])
